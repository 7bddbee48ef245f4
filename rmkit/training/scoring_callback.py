"""Scores the sets during a run: before the first step, after steps or epochs, and at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

from rmkit.data.conversations import as_text, prompt_columns, response_columns
from rmkit.data.overlap import find_overlap
from rmkit.encoding.pairs import EncodedPairs
from rmkit.evaluation.scoring import pair_outputs, pair_rewards
from rmkit.evaluation.statistics import summary, unseen_prompt_accuracy
from rmkit.files import write_json, write_table
from rmkit.reward_models.probe import check_forward
from rmkit.runs.directory import FINAL, INITIAL, RunDirectory
from rmkit.runs.rewards import PairRewards
from rmkit.training.reference import References
from rmkit.training.training_run import TrainingRun

LOGGED = {
    # name in trackers -> key in run.json
    "accuracy": "accuracy",
    "margin": "margin",
    "normalized_margin": "normalized_margin",
    "loss": "training_loss",
}


class ScoringCallback(TrainerCallback):
    """Writes rewards/ and examples/, keeps the metrics of every state in `history`, and logs them.

    Trackers (`training.report_to`) and the terminal get them as eval/<set>/accuracy and so on. States after steps leave
    no rewards files, which would grow with their number.

    The history is saved with every checkpoint, so that a resumed run has all of it.
    """

    FILE = "history.json"

    def __init__(self, run: TrainingRun, trainer: Any, references: References):
        self.run, self.trainer, self.references = run, trainer, references
        self.history: list[dict[str, Any]] = []
        self.scored: dict[str, PairRewards] = {}
        self.losses: dict[str, float] = {}
        self.scored_step = -1
        self.unseen_prompts: dict[str, NDArray[np.bool_]] = {}
        self.seconds = 0.0
        self.seconds_in_training = 0.0  # included in transformers' training time

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe the model, compute the reference's outputs on every set, then the initial rewards."""
        started = time.time()
        check_forward(self.trainer.model_wrapped, self.run.reward_model, half=self.run.metadata.half)
        resumed = state.global_step > 0
        if self.run.reward_model.reference == "base":
            self.references.compute_from_policy(self.run.encoded, self.trainer, resumed)
        self.seconds += time.time() - started
        if not resumed:
            self.score(INITIAL, 0.0, 0)
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.history = json.loads((folder / self.FILE).read_text(encoding="utf-8"))["history"]
        if state.epoch == round(state.epoch):  # saved after the last step of an epoch, before its scores
            self.on_epoch_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score after this step if the recipe sets evaluation.every_steps, unless the end of its epoch will.

        A run that ends inside an epoch is also scored at its end if the recipe sets evaluation.every_epochs.
        """
        settings = self.run.recipe.evaluation
        if _cut_short(state, control) or self._epoch_is_due(state):
            return
        last = state.global_step >= state.max_steps and (settings.every_steps or settings.epochs)
        if last or (settings.every_steps and state.global_step % settings.every_steps == 0):
            self.score(f"step_{state.global_step}", state.epoch, state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score after this epoch if the recipe sets evaluation.every_epoch or every_epochs."""
        name = f"epoch_{round(state.epoch)}"
        scored = any(entry["state"] == name for entry in self.history)
        if self._epoch_is_due(state) and not _cut_short(state, control) and not scored:
            self.score(name, state.epoch, state.global_step)

    def _epoch_is_due(self, state: Any) -> bool:
        """Whether this is the end of an epoch after which the recipe scores."""
        every = self.run.recipe.evaluation.epochs
        if every is None or state.epoch != round(state.epoch):
            return False
        return round(state.epoch) % every == 0 or bool(state.global_step >= state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the history so far with the checkpoint."""
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE, {"history": self.history})

    def score(self, state: str, epoch: float, step: int) -> None:
        """Score all sets with the model in memory, which is that of `step`; write rewards, log metrics."""
        started = time.time()
        if step != self.scored_step:
            self.scored, self.scored_step = {}, step
        sets = {}
        for name, pairs in self.run.encoded.items():
            if name in self.run.training_rows and not (state == FINAL and self.run.recipe.evaluation.train_fit):
                continue
            if name not in self.scored:  # the last epoch's rewards are the final ones
                self.scored[name], self.losses[name] = self._rewards(pairs, f"{state}: {name}")
            scored = self.scored[name]
            means = {"margin": float(scored.margins.mean()), "training_loss": self.losses[name]}
            sets[name] = summary(scored.rewards, scored.log_rewards) | means | self._on_unseen_prompts(name)
            if self.trainer.is_world_process_zero() and not state.startswith("step_"):
                write_rewards(self.run.directory, state, pairs, scored)
        self.history.append({"state": state, "epoch": epoch, "step": step, "sets": sets})
        self.seconds += time.time() - started
        if state == FINAL:  # logged already, with the scores after the last step
            return
        self.seconds_in_training = self.seconds
        evaluation = self.run.recipe.evaluation
        if evaluation.epochs is None and evaluation.every_steps is None:  # nothing to follow: run.json has both states
            return
        for name, metrics in sets.items():
            self.trainer.log_scores({f"eval_{name}/{metric}": metrics[key] for metric, key in LOGGED.items()})

    def _on_unseen_prompts(self, name: str) -> dict[str, float]:
        """Additional metrics of an evaluation set that shares prompts with the training set."""
        if name in self.run.training_rows:
            return {}
        if name not in self.unseen_prompts:
            overlap = find_overlap(self.run.training_set.pairs, self.run.encoded[name].pairs)
            self.unseen_prompts[name] = ~overlap.prompt
        return unseen_prompt_accuracy(self.unseen_prompts[name], self.scored[name].ranking)

    def _rewards(self, pairs: EncodedPairs, description: str) -> tuple[PairRewards, float]:
        """The rewards of a set, and the training loss on it."""
        outputs = pair_outputs(
            self.trainer.model_wrapped,
            self.run.reward_model,
            pairs,
            batch_size=self.run.recipe.evaluation.batch_size,
            description=description,
        )
        index, reference = [pair.index for pair in pairs.pairs], self.references.get(pairs.name)
        margin = None
        if any(pair.margin is not None for pair in pairs.pairs):
            margin = torch.tensor([pair.margin or 0.0 for pair in pairs.pairs], dtype=torch.float64)
        loss = float(self.run.reward_model.loss(outputs, reference, margin))
        return pair_rewards(self.run.reward_model, outputs, reference, index), loss


def _cut_short(state: Any, control: Any) -> bool:
    """Whether the run ends before its last step."""
    return bool(control.should_training_stop and state.global_step < state.max_steps)


def write_rewards(run: RunDirectory, state: str, pairs: EncodedPairs, scored: PairRewards) -> None:
    """rewards/[state/]<set>.parquet, and once a set examples/<set>.parquet."""
    scored.write(run.rewards(pairs.name, state))
    if not run.examples(pairs.name).exists():
        texts: dict[str, list[Any]] = {
            "prompt": [as_text(pair.prompt) for pair in pairs.pairs],
            "chosen": [as_text(pair.chosen) for pair in pairs.pairs],
            "rejected": [as_text(pair.rejected) for pair in pairs.pairs],
        }
        if not all(isinstance(pair.prompt, str) for pair in pairs.pairs):
            columns = prompt_columns([pair.prompt for pair in pairs.pairs])
            texts |= {"messages": columns.pop("prompt"), **columns}
        if any(isinstance(response, tuple) for pair in pairs.pairs for response in (pair.chosen, pair.rejected)):
            responses = {side: [getattr(pair, side) for pair in pairs.pairs] for side in ("chosen", "rejected")}
            texts |= {f"{side}_messages": column for side, column in response_columns(responses).items()}
        chosen, rejected = zip(*pairs.response_lengths, strict=True)
        tokens = {"chosen_tokens": chosen, "rejected_tokens": rejected}
        write_table(run.examples(pairs.name), {"index": scored.index} | texts | tokens)
