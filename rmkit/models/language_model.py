"""Load transformers models, run reward heads on their hidden states, and compute log-probabilities of tokens.

`bind` makes a head run inside the model's own forward, so that DDP, DeepSpeed and PEFT, which wrap the model, see one
ordinary call. The head gets the last hidden states and computes only what it needs.
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
from rmkit.model_files.gguf import plain_folder
from rmkit.model_files.weights import check_config, check_finite, check_report, check_weights, weight_files
from rmkit.models.numerics import at_least_float32
from rmkit.models.quantization import cast_biases, four_bit_config
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

_MAX_LOGITS = 2**25  # entries of [tokens, vocabulary] in memory at once: 128 MiB in float32
_LOADABLE = "Give a folder with config.json and *.safetensors, or a hub id that this machine can reach."


def load(
    auto_class: Any,
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    layout: Layout = "shared",
    trust_remote_code: bool = False,
    four_bit: str | None = None,
    **config: Any,
) -> PreTrainedModel:
    """Load a model from safetensors, bound to rmkit's forward, in evaluation mode.

    With `layout: shared` it takes packed rows as well as padded batches, if its architecture supports them.

    Args:
        four_bit: quantize the linear layers to 4 bit, and multiply in this dtype; see `four_bit_config`.

    Raises:
        RmkitError: if there is no such model, it has no weights, or some are missing, unexpected, of the wrong shape or
            not finite; if this machine cannot quantize.
    """
    place = str(name)
    quantization = {} if four_bit is None else {"quantization_config": four_bit_config(four_bit)}
    cause, remedy = f"No model could be loaded from {place}", _LOADABLE
    folder = plain_folder(place)
    check_config(place, revision)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # missing and unexpected weights are checked below
    try:
        with library_errors(cause, remedy):
            settings = AutoConfig.from_pretrained(
                folder, revision=revision, trust_remote_code=trust_remote_code, **config
            )
        if getattr(settings, "quantization_config", None) is None:
            check_weights(auto_class, settings, weight_files(place, revision), trust_remote_code)
        with library_errors(cause, remedy):
            model, report = auto_class.from_pretrained(
                folder,
                revision=revision,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **quantization,
                **config,
            )
    finally:
        logging.set_verbosity(verbosity)
    if four_bit is not None:
        cast_biases(model)
    check_report(auto_class, model, report, place)
    check_finite(model, place)
    if possible_layout(layout, model.config, attention)[0] == "shared":
        take_shared_rows(model, attention)
    return bind(model).eval()


def bind(model: PreTrainedModel) -> PreTrainedModel:
    """Make `model(**inputs, reward_head=head)` return the head's outputs; without `reward_head` nothing changes."""
    model.forward = MethodType(_forward, model)  # type: ignore[method-assign]
    return model


def _forward(self: PreTrainedModel, *args: Any, reward_head: Callable[..., Tensor] | None = None, **kwargs: Any) -> Any:
    if reward_head is None:
        return type(self).forward(self, *args, **kwargs)
    inputs = {key: value for key, value in kwargs.items() if value is not None} | {"use_cache": False}
    hidden = backbone(self)(*args, **inputs).last_hidden_state
    with torch.autocast(hidden.device.type, enabled=False):
        return reward_head(self, hidden.flatten(0, 1))


def backbone(model: PreTrainedModel) -> nn.Module:
    """The submodule whose `last_hidden_state` heads read."""
    base: nn.Module = model.base_model
    return base if base is not model else cast(nn.Module, model.model)  # Llama-4 has another base_model_prefix


@contextmanager
def unbound(model: nn.Module) -> Iterator[None]:
    """Restore the original forward of all models in `model`: transformers' `generate` inspects its signature."""
    bound = [module for module in model.modules() if isinstance(module, PreTrainedModel) and "forward" in vars(module)]
    for module in bound:
        del module.forward
    try:
        yield
    finally:
        for module in bound:
            bind(module)


def apply_head(model: nn.Module, head: Head, batch: Batch) -> Tensor:
    """Run one forward pass of a bound model, wrapped or not; returns `head`'s [sequences, outputs]."""
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
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    if inner.config.get_text_config().model_type not in ARCHITECTURES:  # others mix positions after these parts
        yield
        return
    base = inner.base_model
    layer = (getattr(base, "layers", None) or getattr(base, "h", None) or [nn.Module()])[-1]
    attention = getattr(layer, "self_attn", nn.Module())
    parts = [getattr(attention, "q_proj", None), getattr(attention, "o_proj", None), getattr(layer, "mlp", None)]
    handles = [handle for part in parts if part is not None for handle in _restrict(part, positions)]
    if layout_of(inner) == "shared":
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
    """Hooks that restrict a position-wise module to `positions`; its output is 0 elsewhere.

    A module may give more after that output, such as scores of its experts, which nothing reads here.
    """
    shapes = []

    def before(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        shapes.append(inputs[0].shape[:2])
        return (inputs[0].flatten(0, 1)[positions][None],)

    def after(module: nn.Module, inputs: tuple[Tensor], output: Any) -> Any:
        if isinstance(output, tuple):
            return after(module, inputs, output[0]), *output[1:]
        full = output.new_zeros(*shapes[-1], output.shape[-1]).flatten(0, 1)
        return full.index_copy(0, positions, output[0]).view(*shapes[-1], output.shape[-1])

    return [part.register_forward_pre_hook(before), part.register_forward_hook(after)]


def _with_batch(model: PreTrainedModel, hidden: Tensor, head: Head, batch: Batch) -> Tensor:
    return head(model, hidden, batch)


class Unembedding(nn.Linear):
    """An `lm_head` that can also return log-probabilities of any number of tokens in a single call.

    Under ZeRO-3 every module call is a collective, so all processes must make the same calls. Logits of many tokens do
    not fit in memory at once, and the number of tokens differs between processes, so the loop over chunks must be
    inside the call.
    """

    def forward(
        self,
        hidden: Tensor,
        tokens: Tensor | None = None,
        cap: float | None = None,
        low_rank: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Logits [..., vocabulary] of hidden [..., hidden size]; with tokens [positions], ln pi(token) [positions].

        Logits are computed for a bounded number of positions at once, and recomputed in the backward pass.

        Args:
            cap: see `logit_cap`.
            low_rank: [positions, rank] and [rank, vocabulary]; their product is added to the logits.
        """
        hidden = hidden.to(self.weight.dtype)
        if tokens is None:
            return super().forward(hidden)
        size = max(1, _MAX_LOGITS // self.out_features)
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
    """Replace a language model's `lm_head` by an `Unembedding`."""
    unembedding = model.get_output_embeddings()
    if type(unembedding) is nn.Linear:
        replace_linear(model, unembedding, Unembedding)


def replace_linear(model: nn.Module, old: nn.Linear, new_class: type[nn.Linear]) -> None:
    """Replace a layer of `model` by one of another class with the same parameters.

    The parameters are the same objects under the same names, so ties, saved files and ZeRO-3's partitions stay.
    Call it before optimizers, hooks or wrappers are set up.
    """
    name = next(name for name, module in model.named_modules() if module is old)
    # On the meta device a layer takes no memory and draws no random numbers.
    new = new_class(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
    new.weight, new.bias = old.weight, old.bias
    model.set_submodule(name, new.train(old.training))


def next_token_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [positions, vocabulary], at least float32, of hidden [positions, hidden size], as the model gives them."""
    return _capped(at_least_float32(model.get_output_embeddings()(_scaled(model, hidden))), logit_cap(model))


def logit_cap(model: PreTrainedModel) -> float | None:
    """c if the model caps its logits z to c tanh(z / c), as Gemma-2 does; None without a cap."""
    cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return cap


def logit_scale(model: PreTrainedModel) -> float:
    """s if the model's logits are s U h instead of U h, as Granite's and Cohere's; 1 without a scale."""
    config = model.config.get_text_config()
    scale = 1.0
    match config.model_type:
        case "cohere" | "cohere2" | "cohere2_moe":
            scale = config.logit_scale
        case "falcon_h1":
            scale = config.lm_head_multiplier
        case "hyperclovax":
            scale = config.logits_scaling
        case "granite" | "granite_swa" | "granitemoe" | "granitemoe_swa" | "granitemoehybrid" | "granitemoeshared":
            scale = 1 / config.logits_scaling
    return float(scale)


def _scaled(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """s h: U (s h) = s U h, at the cost of a hidden state instead of a vocabulary; so it holds for adapters on U."""
    scale = logit_scale(model)
    return hidden if scale == 1 else hidden * scale


def token_log_probs(model: PreTrainedModel, hidden: Tensor, tokens: Tensor) -> Tensor:
    """ln pi(token) [positions] under the distributions that hidden states [positions, hidden size] predict.

    The unembedding, and every part of an adapter on it, is called exactly once, even for zero positions.
    """
    unembedding, cap = model.get_output_embeddings(), logit_cap(model)
    hidden = _scaled(model, hidden)
    if isinstance(unembedding, lora.Linear) and _is_plain(unembedding):
        low_rank = _low_rank(unembedding, hidden)
        return cast(Tensor, unembedding.base_layer(hidden, tokens=tokens, cap=cap, low_rank=low_rank))
    if isinstance(unembedding, Unembedding | ModulesToSaveWrapper):
        return cast(Tensor, unembedding(hidden, tokens=tokens, cap=cap))
    return _log_probs(_capped(at_least_float32(unembedding(hidden)), cap), tokens)  # all logits at once


def _is_plain(layer: lora.Linear) -> bool:
    """Whether the adapters on an `Unembedding` only add a product of two matrices to its weight."""
    return isinstance(layer.base_layer, Unembedding) and not layer.lora_variant and not any(layer.lora_bias.values())


def _low_rank(layer: lora.Linear, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
    """The logits that the active adapters add, as factors [positions, rank] and [rank, vocabulary]."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or not names:
        return None
    narrow, wide = [], []
    for name in names:
        down, up = layer.lora_A[name], layer.lora_B[name]
        low = down(layer.lora_dropout[name](hidden.to(down.weight.dtype)))
        narrow.append(low * layer.scaling[name])
        wide.append(up(torch.eye(low.shape[-1], dtype=low.dtype, device=low.device)))
    return torch.cat(narrow, dim=-1), torch.cat(wide)


def response_log_probs(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    """ln pi(y|x) [sequences, 1], summed in float64: float32 rounds too much over hundreds of tokens."""
    return segment_sum(response_token_log_probs(model, hidden, batch), batch["response_lengths"])[:, None]


def response_token_log_probs(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    """ln pi of each response token given the tokens before it [response tokens]."""
    tokens = batch["input_ids"].flatten()[batch["response"]]
    return token_log_probs(model, hidden[batch["predictor"]], tokens)


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, None])[:, 0]


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


def segment_sum(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums [segments] in float64 of consecutive segments of values [positions]; deterministic."""
    return torch.segment_reduce(values.double(), "sum", lengths=lengths, axis=0)


def segment_mean(values: Tensor, lengths: Tensor) -> Tensor:
    """Means [segments, ...] of consecutive segments of values [positions, ...]."""
    return torch.segment_reduce(values, "mean", lengths=lengths, axis=0)
