"""Where the points of a sweep run: as separate processes on this machine, or as cluster jobs through submitit."""

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
"""Environment variable of every process that a sweep starts on this machine: the folder of the sweep."""
_PATIENCE = 60.0  # seconds between SIGTERM, after which a process may save a checkpoint, and SIGKILL
_POLL_SECONDS = 10.0
_CPUS_PER_GPU = 8
_TIMEOUT_MINUTES = 24 * 60

Started = Callable[["Task", str], None]
"""Called when a task starts, with the task and its place."""


@dataclass(frozen=True)
class Task:
    """One `rmkit train`.

    Attributes:
        recipe, log: files.
        distributed: the recipe's `distributed:`.
        prepare: called just before the task starts.
    """

    name: str
    recipe: Path
    log: Path
    distributed: str | None
    prepare: Callable[[], None]

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "rmkit", "train", str(self.recipe)]

    @property
    def processes(self) -> int | None:
        """Number of processes (one per GPU) of the recipe's accelerate configuration; None if it names none."""
        if self.distributed is None:
            return None
        return int(load_yaml(find_accelerate_config(self.distributed)).get("num_processes", 1))


class Launcher(Protocol):
    """Runs tasks."""

    def run(self, output: Path, tasks: Sequence[Task]) -> contextlib.AbstractContextManager[Iterator[Task]]:
        """Start the tasks and yield them as they finish or fail; leaving the context stops or detaches the others."""
        ...


# --- on this machine -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalLauncher:
    """Tasks as processes on this machine, `max_parallel` at a time, which share the visible GPUs."""

    max_parallel: int = 1
    started: Started = lambda task, where: None

    @contextlib.contextmanager
    def run(self, output: Path, tasks: Sequence[Task]) -> Iterator[Iterator[Task]]:
        for task in tasks:
            if job_file(task).exists():
                raise RmkitError(
                    f"{task.name} was submitted to a cluster as job {job_file(task).read_text().strip()}.",
                    f"Continue with --launcher slurm, or remove {job_file(task)} if that job no longer exists.",
                )
        end_processes(output)  # leftovers of a killed sweep would write to the same folders
        slots: Queue[list[str]] = Queue()
        for gpus in split_gpus(visible_gpus() if tasks else [], self.max_parallel):
            slots.put(gpus)
        stopped, starting = threading.Event(), threading.Lock()

        def run_task(task: Task) -> Task:
            gpus = slots.get()
            used = gpus[:1] if task.processes == 1 else gpus
            environment = os.environ | {SWEEP_VARIABLE: str(output.resolve())}
            if used:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(used)
            try:
                with starting:
                    if stopped.is_set():
                        return task
                    task.prepare()
                    process = start_process(task.command, task.log, environment)
                self.started(task, f"on GPU {', '.join(used)}" if used else "")
                process.wait()
            finally:
                slots.put(gpus)
            return task

        with ThreadPoolExecutor(self.max_parallel) as pool:
            futures = [pool.submit(run_task, task) for task in tasks]
            try:
                yield (future.result() for future in as_completed(futures))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                with starting:  # no task starts after this, so `end_processes` finds them all
                    stopped.set()
                end_processes(output)


def start_process(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in its own session, so that Ctrl-C reaches only the sweep; its output goes to the log."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )


def end_processes(output: Path) -> None:
    """End the processes that a sweep of this folder started on this machine; they carry SWEEP_VARIABLE."""
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
    """The GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def split_gpus(gpus: Sequence[str], parts: int) -> list[list[str]]:
    """Split the GPUs into `parts` lists of nearly equal length.

    Raises:
        RmkitError: if there are GPUs, but fewer than `parts`.
    """
    if gpus and parts > len(gpus):
        raise RmkitError(
            f"--max-parallel {parts} is more than the {len(gpus)} GPUs.", f"Use at most --max-parallel {len(gpus)}."
        )
    bounds = [len(gpus) * part // parts for part in range(parts + 1)]
    return [list(gpus[first:last]) for first, last in itertools.pairwise(bounds)]


# --- on a cluster ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClusterLauncher:
    """Tasks as submitit jobs. A job outlives the sweep that submitted it; the next sweep waits for it.

    `parameters` are submitit's (timeout_min, slurm_partition ...). A job gets one GPU per process of the recipe's
    accelerate configuration, on one node. `local` runs jobs on this machine, for tests.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    cluster: Literal["slurm", "local"] = "slurm"
    started: Started = lambda task, where: None
    poll_seconds: float = _POLL_SECONDS

    @contextlib.contextmanager
    def run(self, output: Path, tasks: Sequence[Task]) -> Iterator[Iterator[Task]]:
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
            except Exception as error:  # a job that was cancelled, timed out or lost
                with task.log.open("a", encoding="utf-8") as log:
                    log.write(f"\njob {job.job_id}: {error}\n")
            job_file(task).unlink(missing_ok=True)
            yield task

    def _earlier(self, output: Path, task: Task) -> Any:
        """The job that an earlier sweep submitted, if it is still pending or running."""
        import submitit

        if not job_file(task).exists():
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
            job = executor.submit(run_job, task.command, task.log)
        except (RuntimeError, NameError, TypeError, ValueError, submitit.core.utils.FailedSubmissionError) as error:
            raise RmkitError(
                f"{task.name} could not be submitted to {self.cluster}: {error}.",
                "Correct the --slurm parameters, or use --launcher local.",
            ) from None
        write_text(job_file(task), f"{job.job_id}\n")
        return job


def run_job(command: Sequence[str], log: Path) -> int:
    """Run a task's command inside a cluster job, its output in the log; returns the exit code."""
    with log.open("wb") as stream:
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False).returncode


def job_file(task: Task) -> Path:
    """The file that holds the id of a task's job while there is one."""
    return task.log.with_suffix(".job")


def _folder(output: Path) -> Path:
    return output / "logs" / "jobs"
