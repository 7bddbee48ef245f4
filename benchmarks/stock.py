"""The baseline of training: TRL's RewardTrainer and DPOTrainer, as documented and at their fastest."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from benchmarks.ours import peak_mib
from benchmarks.setting import BETA, LEARNING_RATE, SEED, Job, Measurement, Workspace
from rmkit.data.preferences import PreferencePair, load_preferences
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.errors import RmkitError


class TimedDPOTrainer(DPOTrainer):
    """DPOTrainer that measures the time of its reference pass."""

    reference_seconds = 0.0

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **options: Any) -> Dataset:
        started = time.perf_counter()
        computed = super()._precompute_ref_logps(dataset, *args, **options)
        self.reference_seconds += time.perf_counter() - started
        return computed


def train(job: Job, scratch: Path) -> Measurement:
    """One epoch of stock TRL: `stock` as documented; `stock_best` grouped by length, its reference precomputed.

    Raises:
        RmkitError: if TRL reads different tokens than rmkit, so that the two are not comparable.
    """
    workspace = Workspace(job.workspace)
    pairs = list(load_preferences(str(workspace.train)))
    encoded = sequences(workspace, pairs)
    best = job.side == "stock_best"
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        trainer = _trainer(job, folder, str(workspace.base), conversations(pairs, encoded if best else None))
        _check_same_tokens(trainer.train_dataset, encoded)
        outcome = trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Measurement(
        seconds=outcome.metrics["train_runtime"],
        reference_seconds=getattr(trainer, "reference_seconds", 0.0),
        peak_mib=peak_mib(),
        losses=losses,
    )


def _trainer(job: Job, folder: str, base: str, dataset: Dataset) -> Any:
    shape, best = job.setting.shape, job.side == "stock_best"
    options: dict[str, Any] = {
        "output_dir": folder,
        "max_length": None,
        "num_train_epochs": 1,
        "per_device_train_batch_size": job.micro_batch,
        "gradient_accumulation_steps": job.setting.batch_size // job.micro_batch,
        # The same on both sides: the paper's optimizer, weights in the shape's dtype, no recomputation.
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "seed": SEED,
        "bf16": False,
        "model_init_kwargs": {"dtype": shape.dtype},
        "gradient_checkpointing": False,
        "dataloader_pin_memory": shape.device == "gpu",
        # No saving, evaluation or progress bars.
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    if best:  # the sampler needs the column of lengths, which would be removed as unused
        options |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    if job.work == "explicit":
        return RewardTrainer(model=base, args=RewardConfig(**options), train_dataset=dataset)
    options |= {"beta": BETA, "loss_type": "sigmoid", "precompute_ref_log_probs": best}
    return TimedDPOTrainer(model=base, args=DPOConfig(**options), train_dataset=dataset)


def conversations(pairs: list[PreferencePair], lengths_of: list[tuple[TokenSequence, TokenSequence]] | None) -> Dataset:
    """The pairs in TRL's documented format; `lengths_of` adds the longer sequence's token count for the sampler."""
    columns: dict[str, list[Any]] = {
        "prompt": [[{"role": "user", "content": pair.prompt}] for pair in pairs],
        "chosen": [[{"role": "assistant", "content": pair.chosen}] for pair in pairs],
        "rejected": [[{"role": "assistant", "content": pair.rejected}] for pair in pairs],
    }
    if lengths_of is not None:
        columns["length"] = [max(len(chosen), len(rejected)) for chosen, rejected in lengths_of]
    return Dataset.from_dict(columns)


def sequences(workspace: Workspace, pairs: list[PreferencePair]) -> list[tuple[TokenSequence, TokenSequence]]:
    """The token sequences that rmkit reads for every pair."""
    encoder = ChatEncoder(load_tokenizer(workspace.base)[0])
    prompts = [pair.prompt for pair in pairs]
    chosen, rejected = (
        encoder.response_sequences(prompts, [getattr(pair, column) for pair in pairs])
        for column in ("chosen", "rejected")
    )
    return list(zip(chosen, rejected, strict=True))


def _check_same_tokens(dataset: Dataset, encoded: list[tuple[TokenSequence, TokenSequence]]) -> None:
    for number, row in enumerate(dataset):
        before = row.get("prompt_ids", [])
        theirs = (before + row["chosen_ids"], before + row["rejected_ids"])
        if theirs != tuple(sequence.ids for sequence in encoded[number]):
            raise RmkitError(f"TRL and rmkit read different tokens of pair {number}.", "Report this as a bug.")
