"""Where the points of a sweep run: on this machine, each as a process of its own, or on a cluster through submitit."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, Literal, Protocol

import psutil

from rmkit.config.resources import find_accelerate_config
from rmkit.config.strict_yaml import load_yaml
from rmkit.errors import RmkitError
from rmkit.files import write_text

SWEEP_VARIABLE = "RMKIT_SWEEP"
"""In the environment of every process that a sweep starts here: the folder of the sweep."""
_PATIENCE = 60.0  # seconds between asking processes to end, when they may save a checkpoint, and ending them
_POLL_SECONDS = 10.0
_CPUS_PER_GPU = 8
_TIMEOUT_MINUTES = 24 * 60

Started = Callable[["Task", str], None]
"""Called with a task that starts, and where it does."""


@dataclass(frozen=True)
class Task:
    """One `rmkit train`: its recipe's file, its log, the recipe's `distributed:`, and what to do just before."""

    name: str
    recipe: Path
    log: Path
    distributed: str | None
    prepare: Callable[[], None]

    @property
    def command(self) -> list[str]:
        """What is run."""
        return [sys.executable, "-m", "rmkit", "train", str(self.recipe)]

    @property
    def processes(self) -> int | None:
        """How many processes, one a GPU, the recipe's accelerate configuration asks for; None if it names none."""
        if self.distributed is None:
            return None
        return int(load_yaml(find_accelerate_config(self.distributed)).get("num_processes", 1))


class Launcher(Protocol):
    """Runs tasks."""

    def at_work(self, output: Path, tasks: Sequence[Task]) -> contextlib.AbstractContextManager[Iterator[Task]]:
        """The tasks as they end, well or not. Leaving the context early ends or leaves alone what runs."""
        ...


# --- here ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalLauncher:
    """Tasks as processes of this machine, so many at a time; the visible GPUs are shared out between them."""

    max_parallel: int = 1
    started: Started = lambda task, where: None

    @contextlib.contextmanager
    def at_work(self, output: Path, tasks: Sequence[Task]) -> Iterator[Iterator[Task]]:
        for task in tasks:
            if job_file(task).exists():
                raise RmkitError(
                    f"{task.name} was given to a cluster as job {job_file(task).read_text().strip()}.",
                    f"Go on with --launcher slurm, or remove {job_file(task)} if that job is gone.",
                )
        end_processes(output)  # those of a sweep that was killed, which would write to the same folders
        slots: Queue[list[str]] = Queue()
        for gpus in share_out(visible_gpus() if tasks else [], self.max_parallel):
            slots.put(gpus)
        stopped, starting = threading.Event(), threading.Lock()

        def run(task: Task) -> Task:
            gpus = slots.get()
            own = gpus[:1] if task.processes == 1 else gpus
            environment = os.environ | {SWEEP_VARIABLE: str(output.resolve())}
            if own:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
            try:
                with starting:
                    if stopped.is_set():
                        return task
                    task.prepare()
                    process = start(task.command, task.log, environment)
                self.started(task, f"on GPU {', '.join(own)}" if own else "")
                process.wait()
            finally:
                slots.put(gpus)
            return task

        with ThreadPoolExecutor(self.max_parallel) as pool:
            futures = [pool.submit(run, task) for task in tasks]
            try:
                yield (future.result() for future in as_completed(futures))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                with starting:  # nothing starts any more: what is found now is all there is
                    stopped.set()
                end_processes(output)


def start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process in a session of its own, so that Ctrl-C reaches the sweep alone; what it says goes to the log."""
    with log.open("wb") as said:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
        )


def end_processes(output: Path) -> None:
    """End the processes that a sweep of this folder has started here, and theirs: they carry its name."""
    marked = {SWEEP_VARIABLE: str(output.resolve())}.items()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and marked <= process.environ().items():
                process.terminate()
                found.append(process)
    for process in psutil.wait_procs(found, timeout=_PATIENCE)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [each.strip() for each in named.split(",") if each.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def share_out(gpus: Sequence[str], parts: int) -> list[list[str]]:
    """GPUs in so many lists of nearly the same length.

    Raises:
        RmkitError: if there are GPUs, but fewer than parts.
    """
    if gpus and parts > len(gpus):
        raise RmkitError(f"--max-parallel {parts} is more than the {len(gpus)} GPUs.", "Lower it.")
    bounds = [len(gpus) * part // parts for part in range(parts + 1)]
    return [list(gpus[first:last]) for first, last in itertools.pairwise(bounds)]


# --- on a cluster --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClusterLauncher:
    """Tasks as jobs of submitit. A job goes on when the sweep ends; the next sweep waits for it.

    `parameters` are submitit's (timeout_min, slurm_partition ...). A job gets a GPU for each process of the recipe's
    accelerate configuration, on one node.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    started: Started = lambda task, where: None
    poll_seconds: float = _POLL_SECONDS

    @contextlib.contextmanager
    def at_work(self, output: Path, tasks: Sequence[Task]) -> Iterator[Iterator[Task]]:
        jobs = {}
        for task in tasks:
            job = self._earlier(output, task) or self._submit(output, task)
            jobs[job] = task
            self.started(task, f"job {job.job_id}")
        yield self._completed(jobs)

    def _completed(self, jobs: Mapping[Any, Task]) -> Iterator[Task]:
        from submitit.helpers import as_completed as completed_jobs

        for job in completed_jobs(list(jobs), poll_frequency=self.poll_seconds):
            task = jobs[job]
            try:
                job.result()
            except Exception as error:  # whatever submitit says of a job that was cancelled, timed out or lost
                with task.log.open("a", encoding="utf-8") as log:
                    log.write(f"\njob {job.job_id}: {error}\n")
            job_file(task).unlink(missing_ok=True)
            yield task

    def _earlier(self, output: Path, task: Task) -> Any:
        """The job of an earlier sweep, if it still waits or runs."""
        import submitit

        if not job_file(task).exists() or self.cluster == "debug":
            return None
        job_class: Any = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[self.cluster]
        job = job_class(folder=_folder(output), job_id=job_file(task).read_text().strip())
        return None if job.done() else job

    def _submit(self, output: Path, task: Task) -> Any:
        import submitit

        task.prepare()
        gpus = task.processes or 1
        defaults = {
            "name": task.name,
            "nodes": 1,
            "tasks_per_node": 1,
            "gpus_per_node": gpus,
            "cpus_per_task": _CPUS_PER_GPU * gpus,
            "timeout_min": _TIMEOUT_MINUTES,
        }
        try:
            executor = submitit.AutoExecutor(folder=_folder(output), cluster=self.cluster)
            executor.update_parameters(**(defaults | dict(self.parameters)))
            job = executor.submit(run_task, task.command, task.log)
        except (RuntimeError, NameError, TypeError, ValueError, submitit.core.utils.FailedSubmissionError) as error:
            raise RmkitError(
                f"{task.name} cannot be given to {self.cluster}: {error}.", "Mend --slurm, or use --launcher local."
            ) from None
        write_text(job_file(task), f"{job.job_id}\n")
        return job


def run_task(command: Sequence[str], log: Path) -> int:
    """What a job does: the command, with its own log; returns its exit code."""
    with log.open("wb") as said:
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False).returncode


def job_file(task: Task) -> Path:
    """Where the id of a task's job is kept while it has one."""
    return task.log.with_suffix(".job")


def _folder(output: Path) -> Path:
    return output / "logs" / "jobs"
