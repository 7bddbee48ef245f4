"""rmkit: train, score and compare explicit, implicit and generative reward models.

The names in `__all__` are the public face (docs/api.md); everything else is internal. Importing them loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rmkit.api import load_reward_model, train
from rmkit.errors import RmkitError

if TYPE_CHECKING:
    from rmkit.config.recipe import load_recipe
    from rmkit.data.preferences import PreferencePair
    from rmkit.evaluation.scorer import RewardScorer

__version__ = "0.1.0"
__all__ = [
    "PreferencePair",
    "RewardScorer",
    "RmkitError",
    "__version__",
    "load_recipe",
    "load_reward_model",
    "train",
]

_LAZY = {
    "PreferencePair": "rmkit.data.preferences",
    "RewardScorer": "rmkit.evaluation.scorer",
    "load_recipe": "rmkit.config.recipe",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "Scorer":  # the old name
        name = "RewardScorer"
    if name not in _LAZY:
        raise AttributeError(f"module 'rmkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
