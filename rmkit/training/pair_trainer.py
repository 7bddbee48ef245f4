"""What the trainers share: the loss of a batch, weighted so that an optimizer step is a mean over its pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rmkit.errors import RmkitError
from rmkit.models.language_model import apply_head
from rmkit.reward_models import RewardModel
from rmkit.training.micro_batches import MicroBatches


class PairLoader(DataLoader[Any]):
    """A DataLoader whose batch sampler learns of a new epoch: transformers calls `set_epoch` on the loader."""

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the batch sampler, which orders the pairs by it."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class PairTrainerMixin:
    """Put before a Trainer class: `compute_loss` computes the reward model's loss, whatever its type.

    Args:
        reward_model: the reward model to train.
        reference_outputs: returns the reference's outputs [pairs, 2, outputs] on the training set, or None without a
            reference. Called at every step, since the policy itself may compute them before the first one.
    """

    # The loss below is already divided by the pairs of the whole optimizer step (transformers and TRL look at this).
    loss_is_scaled_for_ga = True

    args: Any
    accelerator: Any
    state: Any
    control: Any
    train_dataset: Any
    data_collator: Any

    def __init__(
        self,
        *args: Any,
        reward_model: RewardModel[Any],
        reference_outputs: Callable[[], Tensor | None] = lambda: None,
        **options: Any,
    ):
        self.reward_model, self.reference_outputs = reward_model, reference_outputs
        self._sums: defaultdict[str, Any] = defaultdict(float)  # over the pairs since the last log
        super().__init__(*args, **options)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process, with about the same number of tokens where prompts are shared."""
        args, dataset = self.args, self.train_dataset
        micro_batches = MicroBatches(
            len(dataset),
            list(dataset["tokens"]) if self.data_collator.layout == "shared" else None,
            batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            accumulation=args.gradient_accumulation_steps,
            processes=args.world_size,
            process=args.process_index,
            seed=args.seed if args.data_seed is None else args.data_seed,
            drop_last=args.dataloader_drop_last,
        )
        return PairLoader(
            dataset,
            batch_sampler=micro_batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            in_order=args.dataloader_in_order,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, and the number of their pairs over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        pairs = torch.tensor(sum(len(batch["index"]) for batch in batches), device=device)
        return batches, self.accelerator.reduce(pairs, reduction="sum")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This micro-batch's share of the step's mean loss over pairs; DDP and ZeRO average the processes'."""
        outputs, extra_loss = self.outputs(model, inputs)
        outputs = outputs.unflatten(0, (-1, 2))
        reference = self.reference_outputs()
        if reference is not None:
            reference = reference[inputs["index"].cpu()].to(outputs.device)
        loss = self.reward_model.loss(outputs, reference, inputs.get("margin")) + extra_loss
        self._add_to_log(loss.detach(), self.reward_model.rewards(outputs.detach(), reference))
        pairs = len(inputs["index"])
        share = 1.0 if num_items_in_batch is None else pairs * self.accelerator.num_processes / num_items_in_batch
        return loss * share

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | float]:
        """Outputs [sequences, outputs] of the reward model, and an additional loss term, from one forward pass."""
        return apply_head(model, self.reward_model.outputs, inputs), 0.0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add loss, accuracy and margin over the pairs since the last log, from all processes.

        Accuracy (a tie counts as one half) and margin appear under the names of DPO trainers as well.

        Raises:
            RmkitError: if the loss is not finite.
        """
        if self._sums["pairs"] or "loss" in logs:
            names = ("pairs", "pair_loss", "accuracy", "margin")
            sums = torch.tensor(
                [self._sums[name] for name in names], device=self.accelerator.device, dtype=torch.float32
            )
            pairs, *totals = self.accelerator.reduce(sums, reduction="sum").tolist()
            self._sums.clear()
            if pairs:
                logs |= {name: total / pairs for name, total in zip(names[1:], totals, strict=True)}
                logs |= {"rewards/accuracies": logs["accuracy"], "rewards/margins": logs["margin"]}
                if not torch.isfinite(torch.tensor(totals[0])):
                    raise RmkitError(
                        f"The loss is not finite at step {self.state.global_step}: training has diverged.",
                        "Lower training.learning_rate, or use base.dtype: float32.",
                    )
        super().log(logs, start_time)  # type: ignore[misc]

    def log_scores(self, logs: dict[str, float]) -> None:
        """Log metrics of evaluation sets; leave the sums of training and the next log of training as they are."""
        due = self.control.should_log  # transformers takes every log for the one that is due
        super().log(logs)  # type: ignore[misc]
        self.control.should_log = due

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: rmkit writes its own card when it publishes a model."""

    def _add_to_log(self, loss: Tensor, rewards: Tensor) -> None:
        chosen, rejected = rewards[:, 0].float(), rewards[:, 1].float()
        self._sums["pairs"] += len(rewards)
        self._sums["pair_loss"] += loss.float() * len(rewards)
        self._sums["accuracy"] += ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).sum()
        self._sums["margin"] += (chosen - rejected).sum()
