"""QLoRA: a base whose linear layers are held in 4 bit, under adapters in float32.

bitsandbytes quantizes while transformers loads: NF4 with double quantization, as in the QLoRA paper (Dettmers et al.,
2023). Embeddings, norms, the unembedding and the reward head are not quantized.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from rmkit.errors import RmkitError

BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per quantized weight: 4 bits, a byte per block of 64, and four bytes per 256 of these blocks."""


def require_four_bit(what: str, remedy: str, gpu: bool | None = None) -> None:
    """Check that this machine can hold weights in 4 bit.

    Args:
        what: what needs it, for the message.
        remedy: what to do without a GPU.
        gpu: whether the computation runs on a GPU; by default, whether one is visible.

    Raises:
        RmkitError: without a GPU, or without the package bitsandbytes.
    """
    if not (torch.cuda.is_available() if gpu is None else gpu):
        raise RmkitError(f"{what} needs a GPU; none is visible.", remedy)
    if find_spec("bitsandbytes") is None:
        raise RmkitError(
            f"{what} needs the package bitsandbytes, which is not installed.",
            'Install it with `pip install "rmkit[qlora]"`.',
        )


def four_bit_config(compute: str) -> BitsAndBytesConfig:
    """How transformers quantizes: NF4 with double quantization.

    Args:
        compute: the dtype, by its name in torch, in which quantized weights are multiplied.

    Raises:
        RmkitError: see `require_four_bit`.
    """
    require_four_bit("A base in 4 bit", 'Load it unquantized: --load-in none (load_in="none" in Python).')
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, compute),
    )


def cast_biases(model: PreTrainedModel) -> None:
    """Cast the biases of quantized layers to the dtype that they are added in, as bitsandbytes does on first use.

    Otherwise a model that has been used would differ from the same one just loaded.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit) and layer.bias is not None:
            layer.bias.data = layer.bias.data.to(layer.compute_dtype)


def quantized_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers of an unquantized model that loading in 4 bit quantizes, by name."""
    kept = get_keys_to_not_convert(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and should_convert_module(name, kept)
    }


def train_in_float32(model: PeftModel) -> None:
    """Undo the cast of TRL's trainers, which convert all that is trained on a quantized base to bfloat16.

    bfloat16 would round most updates away at learning rates such as the paper's 1e-6. Adapters become float32; modules
    that are trained whole, such as the reward head, get the base's values and dtype again.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copy in module.modules_to_save.values():
                for trained, original in zip(copy.parameters(), module.original_module.parameters(), strict=True):
                    trained.data = original.data.to(trained.device, copy=True)
