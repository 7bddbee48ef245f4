"""What the reference of an implicit reward model says of every set: from the store, or from one pass over the set."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from torch import Tensor, nn

from rmkit.encoding.pairs import EncodedPairs
from rmkit.errors import RmkitError
from rmkit.evaluation.limits import WINDOW
from rmkit.evaluation.scoring import pair_outputs
from rmkit.models.positions import last_position, refuse_longer
from rmkit.processes import zero3_disabled
from rmkit.reward_models import RewardModel
from rmkit.reward_models.probe import check_forward
from rmkit.reward_models.saving import ModelMetadata, ModelRef, load_reference
from rmkit.training.reference_store import ReferenceStore, weights_identity


class References:
    """Outputs of the reference, taken once and then held for the run.

    With `reference: base` the policy is its own reference before the first step, so no second model is held. Only a run
    that goes on from a checkpoint, and finds nothing in the store, loads the base again.
    """

    def __init__(self, reward_model: RewardModel[Any], record: ModelMetadata, batch_size: int, state: PartialState):
        self.reward_model, self.record, self.batch_size, self.state = reward_model, record, batch_size, state
        self.taken: dict[str, Tensor] = {}
        self.seconds = 0.0

    def get(self, name: str) -> Tensor | None:
        """Outputs [pairs, 2, outputs] of the reference on a set; None if the reward model has no reference.

        Raises:
            KeyError: if they have not been taken yet.
        """
        return None if self.reward_model.reference is None else self.taken[name]

    def compute_from_policy(self, encoded: Mapping[str, EncodedPairs], trainer: Any, resumed: bool) -> None:
        """The base's outputs, from the policy where it has not been trained yet or has adapters to turn off."""
        unwrapped = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        if isinstance(unwrapped, PeftModel):
            with unwrapped.disable_adapter():
                self._take(encoded, lambda: trainer.model_wrapped)
        elif resumed:
            self.compute_from_other_model(encoded)
        else:
            self._take(encoded, lambda: trainer.model_wrapped)

    def compute_from_other_model(self, encoded: Mapping[str, EncodedPairs]) -> None:
        """Outputs of a model that is loaded for this, whole on every process, and dropped afterwards."""

        def loaded() -> nn.Module:
            with zero3_disabled():
                model: nn.Module = load_reference(
                    self.reward_model,
                    self._origin,
                    dtype=self.record.dtype,
                    attention=self.record.attention,
                    layout=self.record.layout,
                )
            limit = last_position(model)
            for name, pairs in encoded.items():
                refuse_longer(f"reference: {name}", pairs.longest, limit)
            model = model.to(self.state.device)
            check_forward(model, self.reward_model, half=self.record.half)
            return model

        self._take(encoded, functools.cache(loaded))

    @property
    def _origin(self) -> ModelRef:
        if self.reward_model.reference == "base":
            if self.record.base is None:
                raise RmkitError("The base of the reference is not known.", "Give reward_model.reference.")
            return self.record.base
        if self.record.reference is not None:
            return self.record.reference
        return ModelRef(name=str(self.reward_model.reference), revision=self.reward_model.settings.reference_revision)

    def _take(self, encoded: Mapping[str, EncodedPairs], model: Callable[[], nn.Module]) -> None:
        identity = self.record.model_dump(
            mode="json", include={"dtype", "autocast", "attention", "layout", "template_hash"}
        )
        identity |= {
            # Only the main process looks into the store, and reading the weights takes a while.
            "weights": weights_identity(self._origin.name, self._origin.revision) if self.state.is_main_process else "",
            "batch_size": self.batch_size,
            "window": WINDOW,
            "device": self.state.device.type,
        }
        store = ReferenceStore(identity)
        started = time.time()
        for name, pairs in encoded.items():
            compute = functools.partial(self._outputs, model, pairs)
            self.taken[name] = store.outputs(pairs, compute, self.state.is_main_process)
        self.seconds += time.time() - started

    def _outputs(self, model: Callable[[], nn.Module], pairs: EncodedPairs) -> Tensor:
        with self.record.precision(self.state.device):
            return pair_outputs(
                model(), self.reward_model, pairs, batch_size=self.batch_size, description=f"reference: {pairs.name}"
            )
