"""How many tokens a model was made for, and where its position embeddings end, if they do."""

from __future__ import annotations

import itertools
import re
from typing import Any

from torch import nn

from rmkit.errors import RmkitError

# Learned or fixed tables with a row a position, in all architectures of transformers that have one.
_TABLE = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings|positions_embed|pos_encoding)(\.weight)?$")


def made_for(config: Any) -> int | None:
    """The tokens that a model was made for; None if its configuration names no limit."""
    text = config.get_text_config()
    known: int | None = getattr(text, "max_position_embeddings", getattr(text, "max_seq_len", None))
    return known


def last_position(model: nn.Module) -> int | None:
    """The most tokens that a model can read, its positions being rows of a table; None if they have no end."""
    config: Any = model.config
    known = made_for(config)
    if config.get_text_config().model_type == "mpt":  # makes its biases (ALiBi) for so many positions
        return known
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    tables = [name.removesuffix(".weight") for name, _ in named if _TABLE.search(name)]
    if known is None or not tables:
        return None
    modules = dict(model.named_modules())
    embeddings = [module for name in tables if isinstance(module := modules.get(name), nn.Embedding)]
    # RoBERTa's positions begin after the pad token's id.
    return known - max((each.padding_idx + 1 for each in embeddings if each.padding_idx is not None), default=0)


def refuse_longer(name: str, longest: int, limit: int | None) -> None:
    """Refuse texts that end after the last position.

    Args:
        name: whose texts they are.
        longest: tokens of the longest.
        limit: as of `last_position`.

    Raises:
        RmkitError: if `longest` is over the limit.
    """
    if limit is not None and longest > limit:
        raise RmkitError(
            f"{name}: a text takes {longest} tokens; the model has position embeddings for {limit}.",
            f"Leave such pairs out with data.max_length: {limit} (--max-length {limit}), or shorten them.",
        )
