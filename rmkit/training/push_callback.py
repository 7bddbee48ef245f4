"""`hub.push: every_save`: publish the model at every save, while training continues."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rmkit.config.recipe import Hub
from rmkit.errors import RmkitError
from rmkit.hub import push as hub
from rmkit.runs.directory import RunDirectory


class PushCallback(TrainerCallback):
    """Writes a model directory at every save, on all processes together, and uploads it in the background.

    The next save waits for the previous upload. A failed upload prints a warning and does not stop the run: the next
    save, the end of the run or `rmkit push` publishes again.

    Args:
        write: writes the current model into a folder; called on all processes, since it gathers weights.
        describe: returns the current content of run.json; called on the main process.
    """

    def __init__(
        self,
        destination: Hub,
        run_dir: RunDirectory,
        write: Callable[[Path], object],
        describe: Callable[[], dict[str, Any]],
    ):
        self.destination, self.run_dir, self.write, self.describe = destination, run_dir, write, describe
        self.folder = run_dir.path / ".model.published"
        self.uploads = ThreadPoolExecutor(max_workers=1)
        self.upload: Future[None] | None = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write and upload the model of this step."""
        self._wait()
        self.write(self.folder)
        if state.is_world_process_zero:
            self.upload = self.uploads.submit(self._push, self.describe())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for the last upload before the finished run is published."""
        self._wait()

    def _push(self, content: dict[str, Any]) -> None:
        try:
            hub.push(self.run_dir, self.destination, model=self.folder, content=content)
        except Exception as error:  # of any kind: a failed upload must not cost hours of training
            cause = error.cause if isinstance(error, RmkitError) else repr(error)
            step = content["training"]["steps"]
            print(f"warning: step {step}: {cause} Training continues.", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self) -> None:
        if self.upload is not None:
            self.upload.result()
