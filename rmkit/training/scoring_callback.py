"""Scores the sets during a run: before the first step, after epochs, and at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
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


class ScoringCallback(TrainerCallback):
    """Writes rewards/ and examples/, and keeps the metrics of every state in `history`.

    The history is saved with every checkpoint, so that a resumed run has all of it.
    """

    FILE = "history.json"

    def __init__(self, run: TrainingRun, trainer: Any, references: References):
        self.run, self.trainer, self.references = run, trainer, references
        self.training_set = run.training_set.name
        self.history: list[dict[str, Any]] = []
        self.scored: dict[str, PairRewards] = {}
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
            self.score(INITIAL, 0.0)
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.history = json.loads((folder / self.FILE).read_text(encoding="utf-8"))["history"]
        if state.epoch == round(state.epoch):  # saved after the last step of an epoch, before its scores
            self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score after this epoch if the recipe sets evaluation.every_epoch."""
        name = f"epoch_{round(state.epoch)}"
        cut_short = control.should_training_stop and state.global_step < state.max_steps
        scored = any(entry["state"] == name for entry in self.history)
        if self.run.recipe.evaluation.every_epoch and not cut_short and not scored:
            self.score(name, state.epoch)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the history so far with the checkpoint."""
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE, {"history": self.history})

    def score(self, state: str, epoch: float) -> None:
        """Score all sets and write their rewards."""
        started = time.time()
        step = self.trainer.state.global_step
        if step != self.scored_step:
            self.scored, self.scored_step = {}, step
        sets = {}
        for name, pairs in self.run.encoded.items():
            if name == self.training_set and not (state == FINAL and self.run.recipe.evaluation.train_fit):
                continue
            if name not in self.scored:  # the last epoch's rewards are the final ones
                self.scored[name] = self._rewards(pairs, f"{state}: {name}")
            scored = self.scored[name]
            sets[name] = summary(scored.rewards, scored.log_rewards) | self._on_unseen_prompts(name)
            if self.trainer.is_world_process_zero():
                write_rewards(self.run.directory, state, pairs, scored)
        self.history.append({"state": state, "epoch": epoch, "step": step, "sets": sets})
        self.seconds += time.time() - started
        if state != FINAL:
            self.seconds_in_training = self.seconds

    def _on_unseen_prompts(self, name: str) -> dict[str, float]:
        """Additional metrics of an evaluation set that shares prompts with the training set."""
        if name == self.training_set:
            return {}
        if name not in self.unseen_prompts:
            overlap = find_overlap(self.run.encoded[self.training_set].pairs, self.run.encoded[name].pairs)
            self.unseen_prompts[name] = ~overlap.prompt
        return unseen_prompt_accuracy(self.unseen_prompts[name], self.scored[name].ranking)

    def _rewards(self, pairs: EncodedPairs, description: str) -> PairRewards:
        outputs = pair_outputs(
            self.trainer.model_wrapped,
            self.run.reward_model,
            pairs,
            batch_size=self.run.recipe.evaluation.batch_size,
            description=description,
        )
        index = [pair.index for pair in pairs.pairs]
        return pair_rewards(self.run.reward_model, outputs, self.references.get(pairs.name), index)


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
