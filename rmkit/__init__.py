"""rmkit: train, score and compare explicit, implicit and generative reward models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RmkitError", "Scorer", "__version__", "load_reward_model"]

if TYPE_CHECKING:
    from rmkit.errors import RmkitError
    from rmkit.evaluation.scorer import Scorer, load_reward_model


def __getattr__(name: str) -> Any:
    """Import on first use: `rmkit --help` and the report need no torch."""
    if name in ("Scorer", "load_reward_model"):
        from rmkit.evaluation import scorer

        return getattr(scorer, name)
    if name == "RmkitError":
        from rmkit.errors import RmkitError

        return RmkitError
    raise AttributeError(f"module 'rmkit' has no attribute {name!r}")
