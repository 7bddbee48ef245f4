"""The best model of a run: kept on disk from evaluation to evaluation, then made the final one; early stopping."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rmkit.config.evaluation import Evaluation
from rmkit.files import link_folder
from rmkit.runs.directory import FINAL
from rmkit.training.saving import WriteModel, restore_weights
from rmkit.training.scoring_callback import LOGGED, ScoringCallback

FOLDER = "best"
"""Below checkpoints/ and in every checkpoint. The model is one folder further down: there transformers does not take
its adapter for another one of the checkpoint."""


def find_best(history: Sequence[Mapping[str, Any]], save_best: str | None) -> tuple[dict[str, Any] | None, int]:
    """The best evaluation of a history so far, and the number of evaluations after it.

    The state before training does not count; of equal evaluations the first is the best.

    Args:
        save_best: <set>.<metric>; None to keep none.

    Returns:
        state, epoch, step and value of the best evaluation; None and 0 before the first one.
    """
    if save_best is None:
        return None, 0
    evaluated = [entry for entry in history if entry["step"] > 0 and entry["state"] != FINAL]
    if not evaluated:
        return None, 0
    name, _, metric = save_best.rpartition(".")
    values = [entry["sets"][name][LOGGED[metric]] for entry in evaluated]
    at = values.index(min(values) if metric == "loss" else max(values))
    best = {key: evaluated[at][key] for key in ("state", "epoch", "step")}
    return best | {"metric": save_best, "value": values[at]}, len(values) - 1 - at


class BestModelCallback(TrainerCallback):
    """Writes the best model so far to checkpoints/best/model, and stops a run that no longer finds a better one.

    What is best follows from the history of scores, which every checkpoint holds; a checkpoint holds the best model of
    its step as well, so that a resumed run goes on as if it had not been interrupted.

    Args:
        write: writes the current model into a folder; called on all processes, since it gathers weights.
        folder: checkpoints/ of the run.
    """

    def __init__(self, settings: Evaluation, scoring: ScoringCallback, write: WriteModel, folder: Path):
        self.settings, self.scoring, self.write, self.folder = settings, scoring, write, folder / FOLDER
        self.written_step = -1
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the best model of the checkpoint that the run resumes from, and none of a run that was killed."""
        if state.is_world_process_zero:
            self.remove()
            saved = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FOLDER
            if saved.exists():
                link_folder(saved, self.folder)
        self._follow(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the model if it is the best; stop if there was none for long."""
        self._follow(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """As after a step."""
        self._follow(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the best model into the checkpoint."""
        if state.is_world_process_zero and self.folder.exists():
            link_folder(self.folder, Path(args.output_dir) / f"checkpoint-{state.global_step}" / FOLDER)

    def _follow(self, state: Any, control: Any) -> None:
        best, later = find_best(self.scoring.history, self.settings.save_best)
        if best is None:
            return
        if best["step"] == state.global_step != self.written_step:
            started = time.time()
            self.write(self.folder / "model")
            self.written_step = state.global_step
            self.seconds += time.time() - started
        if self.settings.early_stopping is not None and later >= self.settings.early_stopping:
            control.should_training_stop = True
            control.should_save = False  # a run resumed from here would take one more step

    def restore(self, trainer: Any) -> dict[str, Any] | None:
        """Make the best model the one in memory, on all processes together; returns what `find_best` says of it."""
        best, _ = find_best(self.scoring.history, self.settings.save_best)
        if best is not None and best["step"] != trainer.state.global_step:
            restore_weights(trainer, self.folder / "model")
        return best

    def remove(self) -> None:
        """Remove the best model from checkpoints/."""
        shutil.rmtree(self.folder, ignore_errors=True)
