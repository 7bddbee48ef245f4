"""Dropout is off in training unless the recipe says `base.dropout: true`, the same for every type of reward model.

TRL and transformers disagree here, per trainer and per architecture. The paper's rewards and an untrained IM-RM's loss
of ln 2 assume a model without noise, so one function turns it off before the trainer gets the model: dropout modules,
probabilities that attention reads from a module or the configuration, layer drop, and the noise that mixtures of
experts add to their router's input. Adapters are added later and keep `lora.dropout`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from rmkit.errors import RmkitError

ConfigValue = tuple[PretrainedConfig, str, float]
"""A configuration, the name of one of its fields, and its value."""

_NOISE = re.compile(r"dropout|pdrop|layerdrop|drop_(prob|rate|path)|jitter")
_ROUTER_NOISE = "router_jitter_noise"  # Phi-3.5-MoE samples experts in training, and uses this value in evaluation too


def turn_off_dropout(model: nn.Module) -> list[ConfigValue]:
    """Set every dropout probability in a model to 0; returns the original values for `own_dropout`.

    Raises:
        RmkitError: if the model samples in training in a way that cannot be turned off.
    """
    for module in model.modules():
        if hasattr(module, _ROUTER_NOISE):
            raise RmkitError(
                f"{type(module).__name__} samples its experts in training, which cannot be turned off.",
                "Set base.dropout: true to train with it, or use another base.",
            )
        for name in _noisy(module):
            setattr(module, name, 0.0)
    configs = {id(module.config): module.config for module in model.modules() if _has_config(module)}.values()
    values = [(config, name, getattr(config, name)) for config in configs for name in _noisy(config)]
    for config, name, _ in values:
        setattr(config, name, 0.0)
    return values


@contextmanager
def own_dropout(values: Sequence[ConfigValue]) -> Iterator[None]:
    """Restore the base's values inside the block, so that a saved config.json has them; scoring ignores them."""
    for config, name, value in values:
        setattr(config, name, value)
    try:
        yield
    finally:
        for config, name, _ in values:
            setattr(config, name, 0.0)


def _noisy(holder: Any) -> list[str]:
    """The attributes of a module or configuration that are nonzero noise probabilities."""
    return [
        name
        for name, value in vars(holder).items()
        if (_NOISE.search(name) or (name == "p" and isinstance(holder, nn.Module) and _is_dropout(holder)))
        and name != _ROUTER_NOISE
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and value > 0
    ]


def _is_dropout(module: nn.Module) -> bool:
    return "dropout" in type(module).__name__.lower()


def _has_config(module: nn.Module) -> bool:
    return isinstance(getattr(module, "config", None), PretrainedConfig)
