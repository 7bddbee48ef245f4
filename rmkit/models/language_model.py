"""What the reward models need of a transformers model: loading, hidden states, and the log-probabilities of tokens.

`bind` lets a head run inside the model's own forward, so that DDP, DeepSpeed and PEFT, which wrap the model, see one
ordinary call. The head gets the last hidden states and computes only what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from peft.tuners import lora
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from rmkit.encoding.batches import Batch, Layout
from rmkit.library_errors import library_errors
from rmkit.model_files.weights import HEAD, check_config, check_finite, check_report, check_weights, weight_files
from rmkit.models.numerics import at_least_float32
from rmkit.models.shared_attention import (
    ARCHITECTURES,
    FLEX_BLOCK,
    PackedRow,
    layout_of,
    possible_layout,
    take_shared_rows,
)

Head = Callable[[PreTrainedModel, Tensor, Batch], Tensor]
"""(model, hidden states [positions, hidden size], batch) -> [sequences, outputs]."""

_LOGITS_AT_ONCE = 2**25  # entries of [tokens, vocabulary] that are held at a time: 128 MiB in float32
_LOADABLE = "Give a folder that holds config.json and *.safetensors, or a hub id that this machine can reach."


def load(
    auto_class: Any,
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    layout: Layout = "shared",
    trust_remote_code: bool = False,
    **config: Any,
) -> PreTrainedModel:
    """A model from safetensors, bound to rmkit's forward, in evaluation mode.

    With `layout: shared` it takes shared rows beside padded batches, if its architecture can.

    Raises:
        RmkitError: if there is no such model, it has no weights, or some are missing, of another shape, not finite or
            without a place in the model.
    """
    place = str(name)
    cause, remedy = f"No model could be loaded from {place}", _LOADABLE
    check_config(place, revision)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of missing and unexpected weights is checked below
    try:
        with library_errors(cause, remedy):
            settings = AutoConfig.from_pretrained(
                place, revision=revision, trust_remote_code=trust_remote_code, **config
            )
        if getattr(settings, "quantization_config", None) is None:
            check_weights(auto_class, settings, weight_files(place, revision), trust_remote_code)
        with library_errors(cause, remedy):
            model, report = auto_class.from_pretrained(
                place,
                revision=revision,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **config,
            )
    finally:
        logging.set_verbosity(verbosity)
    check_report(auto_class, model, report, place)
    check_finite(model, place)
    model.missing_head = HEAD in report["missing_keys"]
    if possible_layout(layout, model.config, attention)[0] == "shared":
        take_shared_rows(model, attention)
    return bind(model).eval()


def bind(model: PreTrainedModel) -> PreTrainedModel:
    """Let `model(**inputs, reward_head=head)` return the head's outputs; without `reward_head` nothing changes."""
    model.forward = MethodType(_forward, model)  # type: ignore[method-assign]
    return model


def _forward(self: PreTrainedModel, *args: Any, reward_head: Callable[..., Tensor] | None = None, **kwargs: Any) -> Any:
    if reward_head is None:
        return type(self).forward(self, *args, **kwargs)
    given = {key: value for key, value in kwargs.items() if value is not None}
    hidden = backbone(self)(*args, **(given | {"use_cache": False})).last_hidden_state
    with torch.autocast(hidden.device.type, enabled=False):
        return reward_head(self, hidden.flatten(0, 1))


def backbone(model: PreTrainedModel) -> nn.Module:
    """The part whose `last_hidden_state` heads read."""
    own: nn.Module = model.base_model
    return own if own is not model else cast(nn.Module, model.model)  # Llama-4 names another attribute


@contextmanager
def unbound(model: nn.Module) -> Iterator[None]:
    """The models within `model` with their own forward, whose signature transformers' `generate` looks at."""
    bound = [module for module in model.modules() if isinstance(module, PreTrainedModel) and "forward" in vars(module)]
    for module in bound:
        del module.forward
    try:
        yield
    finally:
        for module in bound:
            bind(module)


def apply_head(model: nn.Module, head: Head, batch: Batch) -> Tensor:
    """One forward pass of a bound model, wrapped or not: [sequences, outputs] of `head`."""
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "position_ids")}
    if "branches" in batch:
        if inputs["input_ids"].is_cuda:
            padding = -inputs["input_ids"].shape[1] % FLEX_BLOCK
            inputs = {name: pad(ids, (0, padding)) for name, ids in inputs.items()}
        inputs["packed_row"] = PackedRow(batch["branches"].tolist())
        # transformers passes a 4-D mask through unchanged, so an empty one keeps it from building its own.
        inputs["attention_mask"] = inputs["input_ids"].new_empty(1, 1, 0, 0)
    else:
        inputs["attention_mask"] = batch["attention_mask"]
    return cast(Tensor, model(**inputs, reward_head=partial(_with_batch, head=head, batch=batch)))


@contextmanager
def only_read(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Compute the last layer only at the `positions` of the flattened rows that a head reads.

    No later layer reads the other positions, of which the last one needs keys and values only. Hooks on the parts of
    that layer do this while the block runs. For passes without gradients; architectures that name these parts
    differently, or that have not been tested, compute all positions.
    """
    whole = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    if whole.config.get_text_config().model_type not in ARCHITECTURES:  # others mix positions after these parts
        yield
        return
    inner = whole.base_model
    layer = (getattr(inner, "layers", None) or getattr(inner, "h", None) or [nn.Module()])[-1]
    attention = getattr(layer, "self_attn", nn.Module())
    parts = [getattr(attention, "q_proj", None), getattr(attention, "o_proj", None), getattr(layer, "mlp", None)]
    handles = [handle for part in parts if part is not None for handle in _restrict(part, positions)]
    if layout_of(whole) == "shared":
        handles.append(attention.register_forward_pre_hook(partial(_add_read_positions, positions), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_read_positions(
    positions: Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"read_positions": positions}


def _restrict(part: nn.Module, positions: Tensor) -> list[Any]:
    """Hooks that restrict a position-wise module to `positions`; its output is 0 elsewhere."""
    shapes = []

    def before(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        shapes.append(inputs[0].shape[:2])
        return (inputs[0].flatten(0, 1)[positions][None],)

    def after(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        whole = output.new_zeros(*shapes[-1], output.shape[-1]).flatten(0, 1)
        return whole.index_copy(0, positions, output[0]).view(*shapes[-1], output.shape[-1])

    return [part.register_forward_pre_hook(before), part.register_forward_hook(after)]


def _with_batch(model: PreTrainedModel, hidden: Tensor, head: Head, batch: Batch) -> Tensor:
    return head(model, hidden, batch)


class Unembedding(nn.Linear):
    """transformers' `lm_head`, which also gives the log-probabilities of tokens, in one call however many there are.

    Under ZeRO-3 every call of a module is a collective, so all processes must make the same calls. The logits of many
    tokens do not fit in memory at once, but their number differs from process to process: the loop over chunks of them
    has to be inside the call.
    """

    def forward(
        self,
        hidden: Tensor,
        tokens: Tensor | None = None,
        cap: float | None = None,
        low_rank: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Logits [..., vocabulary] of hidden [..., hidden size]; with tokens [positions], ln pi(token) [positions].

        Logits are formed for a bounded number of positions at a time, and formed again in the backward pass.

        Args:
            cap: see `logit_cap`.
            low_rank: [positions, rank] and [rank, vocabulary], whose product is added to the logits.
        """
        hidden = hidden.to(self.weight.dtype)
        if tokens is None:
            return super().forward(hidden)
        size = max(1, _LOGITS_AT_ONCE // self.out_features)
        narrow, wide = low_rank or (hidden[:, :0], hidden.new_zeros(0, self.out_features))
        parts = []
        for chunk in zip(hidden.split(size), tokens.split(size), narrow.split(size), strict=True):
            if torch.is_grad_enabled() and hidden.shape[0] > size:
                parts.append(checkpoint(self._log_probs, *chunk, wide, cap, use_reentrant=False))
            else:
                parts.append(self._log_probs(*chunk, wide, cap))
        return torch.cat(parts)

    def _log_probs(self, hidden: Tensor, tokens: Tensor, narrow: Tensor, wide: Tensor, cap: float | None) -> Tensor:
        logits = at_least_float32(super().forward(hidden))
        if len(wide):
            logits = logits + (narrow @ wide).to(logits.dtype)
        return _log_probs(_capped(logits, cap), tokens)


def use_unembedding(model: PreTrainedModel) -> None:
    """Put an `Unembedding` in the place of a language model's `lm_head`."""
    unembedding = model.get_output_embeddings()
    if type(unembedding) is nn.Linear:
        replace_linear(model, unembedding, Unembedding)


def replace_linear(model: nn.Module, old: nn.Linear, new_class: type[nn.Linear]) -> None:
    """Replace a layer of `model` by one of another class that holds the same parameters.

    The parameters are the same objects under the same names, so ties, saved files and ZeRO-3's partitions stay.
    Call it before optimizers, hooks or wrappers are set up.
    """
    name = next(name for name, module in model.named_modules() if module is old)
    # On the meta device a layer takes no memory and draws no random numbers.
    new = new_class(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
    new.weight, new.bias = old.weight, old.bias
    model.set_submodule(name, new.train(old.training))


def next_token_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [positions, vocabulary], at least float32, of hidden [positions, hidden size]; capped as it caps."""
    return _capped(at_least_float32(model.get_output_embeddings()(hidden)), logit_cap(model))


def logit_cap(model: PreTrainedModel) -> float | None:
    """c where the model caps its logits z to c tanh(z / c), as Gemma-2 does."""
    cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return cap


def token_log_probs(model: PreTrainedModel, hidden: Tensor, tokens: Tensor) -> Tensor:
    """ln pi(token) [positions] under the distributions that hidden states [positions, hidden size] predict.

    The unembedding and the parts of an adapter on it are called once each, also for no positions at all.
    """
    unembedding, cap = model.get_output_embeddings(), logit_cap(model)
    if isinstance(unembedding, lora.Linear) and _is_plain(unembedding):
        low_rank = _low_rank(unembedding, hidden)
        return cast(Tensor, unembedding.base_layer(hidden, tokens=tokens, cap=cap, low_rank=low_rank))
    if isinstance(unembedding, Unembedding | ModulesToSaveWrapper):
        return cast(Tensor, unembedding(hidden, tokens=tokens, cap=cap))
    return _log_probs(next_token_logits(model, hidden), tokens)  # all logits at once


def _is_plain(layer: lora.Linear) -> bool:
    """Whether the adapters on an `Unembedding` add a product of two matrices to its weight, and nothing else."""
    return isinstance(layer.base_layer, Unembedding) and not layer.lora_variant and not any(layer.lora_bias.values())


def _low_rank(layer: lora.Linear, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
    """What the active adapters add to logits, as [positions, rank] and [rank, vocabulary]."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or not names:
        return None
    narrow, wide = [], []
    for name in names:
        down, up = layer.lora_A[name], layer.lora_B[name]
        its = down(layer.lora_dropout[name](hidden.to(down.weight.dtype)))
        narrow.append(its * layer.scaling[name])
        wide.append(up(torch.eye(its.shape[-1], dtype=its.dtype, device=its.device)))
    return torch.cat(narrow, dim=-1), torch.cat(wide)


def response_log_probs(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    """ln pi(y|x) [sequences, 1], summed in float64: over hundreds of tokens float32 rounds too much."""
    return segment_sum(response_token_log_probs(model, hidden, batch), batch["response_lengths"])[:, None]


def response_token_log_probs(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    """ln pi of each token of the responses, given what is before it [response tokens]."""
    tokens = batch["input_ids"].flatten()[batch["response"]]
    return token_log_probs(model, hidden[batch["predictor"]], tokens)


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, None])[:, 0]


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


def segment_sum(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums [segments] in float64 of consecutive stretches of values [positions]; the same bits on every run."""
    return torch.segment_reduce(values.double(), "sum", lengths=lengths, axis=0)


def segment_mean(values: Tensor, lengths: Tensor) -> Tensor:
    """Means [segments, ...] of consecutive stretches of values [positions, ...]."""
    return torch.segment_reduce(values, "mean", lengths=lengths, axis=0)
