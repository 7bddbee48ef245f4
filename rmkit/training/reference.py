"""Outputs of an implicit reward model's reference on every set: from the store, or from one pass over the set."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn

from rmkit.encoding.pairs import EncodedPairs
from rmkit.errors import RmkitError
from rmkit.evaluation.limits import WINDOW
from rmkit.evaluation.scoring import pair_outputs
from rmkit.models.positions import last_position, refuse_longer
from rmkit.processes import zero3_disabled
from rmkit.reward_models import RewardModel
from rmkit.reward_models.loading import load_reference
from rmkit.reward_models.metadata import ModelMetadata
from rmkit.reward_models.origins import ModelRef
from rmkit.reward_models.probe import check_forward
from rmkit.training.reference_store import ReferenceStore, weights_identity


class References:
    """Outputs of the reference, computed once and kept for the run.

    With `reference: base` the policy is its own reference before the first step, so no second model is kept. Only a
    resumed run that finds nothing in the store loads the base again.
    """

    def __init__(self, reward_model: RewardModel[Any], metadata: ModelMetadata, batch_size: int, state: PartialState):
        self.reward_model, self.metadata, self.batch_size, self.state = reward_model, metadata, batch_size, state
        self.outputs: dict[str, Tensor] = {}
        self.seconds = 0.0

    def get(self, name: str) -> Tensor | None:
        """Outputs [pairs, 2, outputs] of the reference on a set; None if the reward model has no reference.

        Raises:
            KeyError: if they have not been computed yet.
        """
        return None if self.reward_model.reference is None else self.outputs[name]

    def select(self, rows: Mapping[str, NDArray[np.int64]]) -> Tensor | None:
        """Outputs on these pairs of several sets, one set after the other; see `get`."""
        if self.reward_model.reference is None:
            return None
        return torch.cat([self.outputs[name][torch.from_numpy(numbers)] for name, numbers in rows.items()])

    def compute_from_policy(self, encoded: Mapping[str, EncodedPairs], trainer: Any, resumed: bool) -> None:
        """Compute the base's outputs, with the policy if it is untrained or has adapters that can be disabled."""
        unwrapped = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        if isinstance(unwrapped, PeftModel):
            with unwrapped.disable_adapter():
                self._compute(encoded, lambda: trainer.model_wrapped)
        elif resumed:
            self.compute_from_other_model(encoded)
        else:
            self._compute(encoded, lambda: trainer.model_wrapped)

    def compute_from_other_model(self, encoded: Mapping[str, EncodedPairs]) -> None:
        """Compute outputs with a model that is loaded for this, whole on every process, and freed afterwards."""

        def load_other() -> nn.Module:
            with zero3_disabled():
                model: nn.Module = load_reference(
                    self.reward_model,
                    self._reference,
                    dtype=self.metadata.dtype,
                    attention=self.metadata.attention,
                    layout=self.metadata.layout,
                )
            limit = last_position(model)
            for name, pairs in encoded.items():
                refuse_longer(f"reference: {name}", pairs.longest, limit)
            model = model.to(self.state.device)
            check_forward(model, self.reward_model, half=self.metadata.half)
            return model

        self._compute(encoded, functools.cache(load_other))

    @property
    def _reference(self) -> ModelRef:
        if self.reward_model.reference == "base":
            if self.metadata.base is None:
                raise RmkitError("The base that serves as reference is unknown.", "Set reward_model.reference.")
            return self.metadata.base
        if self.metadata.reference is not None:
            return self.metadata.reference
        return ModelRef(name=str(self.reward_model.reference), revision=self.reward_model.settings.reference_revision)

    def _compute(self, encoded: Mapping[str, EncodedPairs], model: Callable[[], nn.Module]) -> None:
        identity = self.metadata.model_dump(
            mode="json", include={"dtype", "autocast", "attention", "layout", "template_hash"}
        )
        if self.metadata.load_in is not None and self.reward_model.reference == "base":
            identity["load_in"] = self.metadata.load_in
        identity |= {
            # Only the main process looks into the store, and reading the weights takes a while.
            "weights": weights_identity(self._reference.name, self._reference.revision)
            if self.state.is_main_process
            else "",
            "batch_size": self.batch_size,
            "window": WINDOW,
            "device": self.state.device.type,
        }
        store = ReferenceStore(identity)
        started = time.time()
        for name, pairs in encoded.items():
            compute = functools.partial(self._outputs_of, model, pairs)
            self.outputs[name] = store.outputs(pairs, compute, self.state.is_main_process)
        self.seconds += time.time() - started

    def _outputs_of(self, model: Callable[[], nn.Module], pairs: EncodedPairs) -> Tensor:
        with self.metadata.precision(self.state.device):
            return pair_outputs(
                model(), self.reward_model, pairs, batch_size=self.batch_size, description=f"reference: {pairs.name}"
            )
