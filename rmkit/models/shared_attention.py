"""Attention over a packed row, which stores each shared prefix of its sequences once.

`encoding.batches.share` builds the row: sequences one after another, each without the prefix that it shares with the
previous one. A token attends to the earlier tokens of its own sequences, wherever they are in the row. All other parts
of a language model (embeddings, norms, feed-forward layers) are position-wise and need no change.

The attention functions registered with transformers here wrap its own. Ordinary masks pass through unchanged. A packed
row is computed sequence by sequence, so transformers' function still handles soft-capping, grouped heads and dropout,
and nothing outside the sequences is computed. On a GPU, FlexAttention computes the whole row at once instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from rmkit.encoding.batches import Layout

ARCHITECTURES = (
    "cohere",
    "cohere2",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
)
"""Architectures (`model_type`) for which a test shows that a packed row gives the results of separate sequences."""

FLEX_BLOCK = 128
"""On a GPU, rows are padded to a multiple of this many tokens, the block size of FlexAttention."""


def why_not_shared(config: PretrainedConfig, attention: str | None) -> str | None:
    """One line on why a model cannot take packed rows; None if it can.

    Args:
        attention: the requested attention function; None means no preference.
    """
    text = config.get_text_config()
    if text.model_type not in ARCHITECTURES:
        return f"the architecture {text.model_type} has not been tested with it"
    if attention not in (None, "sdpa", "eager"):
        return f"the attention function {attention} cannot take it"
    if getattr(text, "use_bidirectional_attention", None):
        return "the model attends to later tokens"
    return None


def possible_layout(layout: Layout, config: PretrainedConfig, attention: str | None) -> tuple[Layout, list[str]]:
    """The layout to use if `layout` is requested, and, if it is another one, a line that explains why."""
    refused = why_not_shared(config, attention) if layout == "shared" else None
    return ("padded", [f"layout: padded, since {refused}."]) if refused else (layout, [])


def take_shared_rows(model: PreTrainedModel, attention: str | None) -> None:
    """Make a model accept packed rows too; on GPUs with FlexAttention unless `attention` names a function."""
    own = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(f"shared_{own}" if attention else f"shared_flex_{own}")


def layout_of(model: torch.nn.Module) -> Layout:
    """The layout of a model's batches: shared after `take_shared_rows`. The model may be wrapped."""
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    attention = str(inner.config.get_text_config()._attn_implementation)
    return "shared" if attention.startswith("shared_") else "padded"


class PackedRow:
    """How the sequences of a packed row branch, and the attention masks that follow.

    Args:
        branches: (shared, own) of each sequence: it starts with the first `shared` tokens of the sequence before it;
            the next `own` tokens of the row continue it. Token t of a sequence has position t.

    Attributes:
        own: [branches] the second numbers.
        pieces: lengths of the pieces into which the row is cut wherever a sequence branches off or ends.
        paths: [branches] the pieces that make up each sequence.
    """

    def __init__(self, branches: list[list[int]]):
        self.branches = branches
        self.own = [own for _, own in branches]
        paths = list(_paths(branches))
        cuts = sorted({edge for path in paths for run in path for edge in run})
        self.pieces = [stop - start for start, stop in pairwise(cuts)]
        number = {start: index for index, start in enumerate(cuts)}
        self.paths = [[piece for start, stop in path for piece in range(number[start], number[stop])] for path in paths]
        self._masks: dict[Any, Tensor] = {}
        self._block_masks: dict[Any, BlockMask] = {}

    def mask(self, branch: int, window: int | None, like: Tensor) -> Tensor:
        """0 where own tokens of a branch attend to a token of its sequence, else -inf [1, 1, own, shared + own]."""
        key = (branch, window, like.dtype)
        if key not in self._masks:
            shared, own = self.branches[branch]
            distance = torch.arange(shared, shared + own)[:, None] - torch.arange(shared + own)
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, -torch.inf)
            self._masks[key] = mask[None, None].to(like.device)
        return self._masks[key]

    def is_causal(self, branch: int, window: int | None) -> bool:
        """Whether plain causal attention computes a branch without a mask: a whole sequence within the window."""
        shared, own = self.branches[branch]
        return shared == 0 and (window is None or own <= window)

    def block_mask(self, tokens: int, window: int | None, device: torch.device) -> BlockMask:
        """FlexAttention's mask over the row, padded to `tokens`; padding attends only to itself."""
        if window not in self._block_masks:
            # The mask has tokens x tokens entries, built once per batch, hence 32 bits.
            ends, positions = (values.to(device, torch.int32) for values in self.ends_and_positions(tokens))

            def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = (key <= query) & (query < ends[key])
                return seen if window is None else seen & (positions[query] - positions[key] < window)

            self._block_masks[window] = create_block_mask(visible, None, None, tokens, tokens, device=str(device))
        return self._block_masks[window]

    def ends_and_positions(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The end of the last sequence that contains each token [tokens], and the token's position in it [tokens].

        Sequences that share tokens are adjacent, so a token is visible from itself up to one place in the row.
        """
        ends, positions = torch.arange(1, tokens + 1), torch.zeros(tokens, dtype=torch.long)
        total, start = sum(self.own), 0
        before: list[tuple[int, int]] = []
        for (shared, own), path in zip(self.branches, _paths(self.branches), strict=True):
            positions[start : start + own] = torch.arange(shared, shared + own)
            for first, stop in before:
                ends[first:stop] = start
            before, start = path, start + own
            for first, stop in before:
                ends[first:stop] = total
        return ends, positions


def _paths(branches: list[list[int]]) -> Iterator[list[tuple[int, int]]]:
    """The tokens of each sequence in the row, as runs (start, stop)."""
    path: list[tuple[int, int]] = []
    end = 0
    for shared, own in branches:
        kept, left = [], shared
        for start, stop in path:
            if left > 0:
                kept.append((start, min(stop, start + left)))
                left -= stop - start
        path = [*kept, (end, end + own)]
        end += own
        yield path


def shared_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    through: Literal["sdpa", "eager"],
    flex: bool,
    packed_row: PackedRow | None = None,
    read_positions: Tensor | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """One of transformers' attention functions, extended to packed rows.

    transformers passes keyword arguments of a model's forward through every layer to its attention function. That is
    how `packed_row` gets here, and it also holds when gradient checkpointing runs a layer again.

    Args:
        query, key, value: [rows, heads, tokens, head size].
        attention_mask: ignored for a packed row.
        through: transformers' function that computes attention.
        flex: use FlexAttention for packed rows on a GPU.
        packed_row: how the sequences of a single row branch; None for a padded batch.
        read_positions: positions of the packed row whose outputs are needed; None means all. Other outputs may be 0.
    """
    if packed_row is None:
        inner = _function(module, through)
        return inner(module, query, key, value, attention_mask, sliding_window=sliding_window, **options)
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings leave queries and keys in float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    output: tuple[Tensor, Tensor | None]
    sinks = options.get("s_aux") is not None  # transformers rounds FlexAttention's normaliser before it adds them
    if flex and query.is_cuda and not sinks and not options.get("dropout"):
        mask = packed_row.block_mask(query.shape[2], sliding_window, query.device)
        output = flex_attention_forward(module, query, key, value, mask, **options)
    else:
        attend = partial(_function(module, through), module, **options)
        masked = through != "sdpa"
        output = _attend_by_branch(attend, query, key, value, packed_row, sliding_window, read_positions, masked)
    return output


# The loop depends on the batch, so torch.compile would compile it again for every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_by_branch(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: PackedRow,
    window: int | None,
    read_positions: Tensor | None,
    masked: bool,
) -> tuple[Tensor, None]:
    """Compute attention branch by branch; `masked`: pass a mask even where causal attention needs none."""
    keys, values = key.split(row.pieces, dim=2), value.split(row.pieces, dim=2)
    outputs, start = [], 0
    for branch, (queries, path) in enumerate(zip(query.split(row.own, dim=2), row.paths, strict=True)):
        own = row.own[branch]
        branch_keys, branch_values = (_concatenate([pieces[piece] for piece in path]) for pieces in (keys, values))
        if read_positions is None:
            read = None
        else:
            read = read_positions[(read_positions >= start) & (read_positions < start + own)] - start
        if read is not None and len(read) < own / 4:
            output = queries.new_zeros(1, own, queries.shape[1], value.shape[-1])
            if len(read):
                mask = row.mask(branch, window, queries)[:, :, read]
                output[:, read] = attend(queries[:, :, read], branch_keys, branch_values, mask)[0]
        else:
            causal = not masked and row.is_causal(branch, window)
            own_mask = None if causal else row.mask(branch, window, queries)
            output = attend(queries, branch_keys, branch_values, own_mask)[0]
        outputs.append(output)
        start += own
    return torch.cat(outputs, dim=1), None


def _concatenate(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _function(module: torch.nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    function: Callable[..., tuple[Tensor, Tensor | None]] = sdpa_attention_forward
    if name == "eager":  # each architecture has its own
        function = sys.modules[type(module).__module__].eager_attention_forward
    return function


_MASKS: dict[Literal["sdpa", "eager"], Any] = {"sdpa": sdpa_mask, "eager": eager_mask}
for _name, _mask in _MASKS.items():
    for _prefix, _flex in (("shared_", False), ("shared_flex_", True)):
        AttentionInterface.register(f"{_prefix}{_name}", partial(shared_attention, through=_name, flex=_flex))
        AttentionMaskInterface.register(f"{_prefix}{_name}", _mask)
