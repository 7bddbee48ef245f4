"""The context length of a model, and the end of its position embeddings, if they have one."""

from __future__ import annotations

import itertools
import re
from typing import Any

from torch import nn

from rmkit.errors import RmkitError

# Tables with one row per position, learned or fixed, in all architectures of transformers that have them.
_TABLE = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings|positions_embed|pos_encoding)(\.weight)?$")


def made_for(config: Any) -> int | None:
    """The context length that a configuration declares, in tokens; None if it declares none."""
    text = config.get_text_config()
    known: int | None = getattr(text, "max_position_embeddings", getattr(text, "max_seq_len", None))
    return known


def last_position(model: nn.Module) -> int | None:
    """The most tokens that a model can read, if its positions are rows of a table; None without such a limit."""
    config: Any = model.config
    known = made_for(config)
    if config.get_text_config().model_type == "mpt":  # its ALiBi biases cover this many positions
        return known
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    tables = [name.removesuffix(".weight") for name, _ in named if _TABLE.search(name)]
    if known is None or not tables:
        return None
    modules = dict(model.named_modules())
    embeddings = [module for name in tables if isinstance(module := modules.get(name), nn.Embedding)]
    # RoBERTa's positions start after the pad token's id.
    return known - max((table.padding_idx + 1 for table in embeddings if table.padding_idx is not None), default=0)


def refuse_longer(name: str, longest: int, limit: int | None) -> None:
    """Refuse texts longer than the model's position embeddings.

    Args:
        name: the name of the set, for the message.
        longest: tokens of its longest text.
        limit: see `last_position`.

    Raises:
        RmkitError: if `longest` is over the limit.
    """
    if limit is not None and longest > limit:
        raise RmkitError(
            f"{name}: a text takes {longest} tokens; the model has position embeddings for {limit}.",
            f"Leave such pairs out with data.max_length: {limit} (--max-length {limit}), or shorten them.",
        )
