"""What the trainers share: the loss of a batch, weighted so that an optimizer step is a mean over its pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rmkit.errors import RmkitError
from rmkit.models.language_model import apply_head
from rmkit.reward_models import RewardModel
from rmkit.training.micro_batches import MicroBatches


class PairTrainerMixin:
    """Put before a Trainer class: `compute_loss` asks the reward model, whatever its type.

    Attributes:
        reward_model: what is trained.
        reference_outputs: [pairs, 2, outputs] of the reference on the training set, set before the first step.
    """

    # The loss below is already divided by the pairs of the whole optimizer step (transformers and TRL ask).
    loss_is_scaled_for_ga = True

    reward_model: RewardModel[Any]
    reference_outputs: Tensor | None = None
    args: Any
    accelerator: Any
    state: Any
    train_dataset: Any
    data_collator: Any

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process; with prompts shared, of like numbers of tokens."""
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
        loader: DataLoader[Any] = DataLoader(
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
        loader.set_epoch = micro_batches.set_epoch  # type: ignore[attr-defined]
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, and how many pairs they hold over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        pairs = torch.tensor(sum(len(batch["index"]) for batch in batches), device=device)
        return batches, self.accelerator.reduce(pairs, reduction="sum")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This micro-batch's share of the step's mean loss over pairs; DDP and ZeRO average the processes'."""
        outputs, extra_loss = self.outputs(model, inputs)
        outputs = outputs.unflatten(0, (-1, 2))
        reference = self.reference_outputs
        if reference is not None:
            reference = reference[inputs["index"].cpu()].to(outputs.device)
        loss = self.reward_model.loss(outputs, reference, inputs.get("margin")) + extra_loss
        self._note(loss.detach(), self.reward_model.rewards(outputs.detach(), reference))
        pairs = len(inputs["index"])
        share = 1.0 if num_items_in_batch is None else pairs * self.accelerator.num_processes / num_items_in_batch
        return loss * share

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | float]:
        """Outputs [sequences, outputs] of the reward model, and a term beside its loss, from one forward pass."""
        return apply_head(model, self.reward_model.outputs, inputs), 0.0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add loss, accuracy and margin over the pairs since the last log, from all processes.

        Raises:
            RmkitError: if the loss is not finite.
        """
        noted = self.__dict__.setdefault("_noted", defaultdict(float))
        if noted["pairs"] or "loss" in logs:
            names = ("pairs", "pair_loss", "accuracy", "margin")
            sums = torch.tensor([noted[name] for name in names], device=self.accelerator.device, dtype=torch.float32)
            pairs, *totals = self.accelerator.reduce(sums, reduction="sum").tolist()
            noted.clear()
            if pairs:
                logs |= {name: total / pairs for name, total in zip(names[1:], totals, strict=True)}
                if not torch.isfinite(torch.tensor(totals[0])):
                    raise RmkitError(
                        f"The loss is not finite at step {self.state.global_step}: training has diverged.",
                        "Lower training.learning_rate, or use base.dtype: float32.",
                    )
        super().log(logs, start_time)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """rmkit writes its own card when it publishes."""

    def _note(self, loss: Tensor, rewards: Tensor) -> None:
        noted = self.__dict__.setdefault("_noted", defaultdict(float))
        chosen, rejected = rewards[:, 0].float(), rewards[:, 1].float()
        noted["pairs"] += len(rewards)
        noted["pair_loss"] += loss.float() * len(rewards)
        noted["accuracy"] += ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).sum()
        noted["margin"] += (chosen - rejected).sum()
