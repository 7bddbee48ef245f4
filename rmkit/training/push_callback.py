"""`hub.push: every_save`: the model is published at every save of a run, while training goes on."""

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

    The next save waits for the upload before. One that fails is said and does not stop the run: the next save, the end
    of the run or `rmkit push` publishes again.

    Args:
        write: writes the model as it is now into a folder; called on all processes, as gathering needs.
        describe: the content of run.json as it is now; called on the main process.
    """

    def __init__(
        self,
        destination: Hub,
        run: RunDirectory,
        write: Callable[[Path], object],
        describe: Callable[[], dict[str, Any]],
    ):
        self.destination, self.run, self.write, self.describe = destination, run, write, describe
        self.folder = run.path / ".model.published"
        self.uploads = ThreadPoolExecutor(max_workers=1)
        self.upload: Future[None] | None = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The model of this step."""
        self._wait()
        self.write(self.folder)
        if state.is_world_process_zero:
            self.upload = self.uploads.submit(self._push, self.describe())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last upload ends before the finished run is published."""
        self._wait()

    def _push(self, content: dict[str, Any]) -> None:
        try:
            hub.push(self.run, self.destination, model=self.folder, content=content)
        except Exception as error:  # whatever it is, hours of training are worth more than this upload
            cause = error.cause if isinstance(error, RmkitError) else repr(error)
            step = content["training"]["steps"]
            print(f"warning: step {step}: {cause} The run goes on.", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self) -> None:
        if self.upload is not None:
            self.upload.result()
