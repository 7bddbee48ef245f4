"""What a recipe needs of each GPU's memory, by the estimators of accelerate and DeepSpeed, without loading weights.

Model states only: weights, gradients and optimizer states. Activations come on top; they grow with the micro-batch and
the length of the texts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rmkit.recipe import Recipe, load_yaml

_GIB = 2**30
_ADAM = 4  # weights, gradients and two moments, all of the weights' dtype, as `accelerate estimate-memory` counts


def model_states(recipe: Recipe) -> str:
    """GiB a GPU in words, or why they are not known."""
    if recipe.base.name is None:
        return "unknown (base is built first)"
    from rmkit.distributed import config_file

    config = load_yaml(config_file(recipe.distributed)) if recipe.distributed is not None else {}
    zero = (config.get("deepspeed_config") or {}).get("zero_stage", 0)
    sizes = _sizes(recipe.base.name, recipe.base.revision, recipe.base.dtype, recipe.base.trust_remote_code)
    if sizes is None:
        return "unknown (base not cached)"
    size, parameters, largest_layer = sizes
    gpus = int(config.get("num_processes", 1))
    if recipe.lora is not None:
        needed = size / gpus if zero == 3 else size
    elif zero == 3:
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

        needed = estimate_zero3_model_states_mem_needs(
            parameters, largest_layer, num_gpus_per_node=gpus, cpu_offload=False, cpu_offload_params=False
        )[1]
    elif zero:
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

        needed = estimate_zero2_model_states_mem_needs(parameters, num_gpus_per_node=gpus, cpu_offload=False)[1]
    else:
        needed = _ADAM * size
    return f"{needed / _GIB:.1f} GiB"


@lru_cache
def _sizes(name: str, revision: str | None, dtype: str, trust_remote_code: bool) -> tuple[int, int, int] | None:
    """Bytes of all weights, their number, and the number in the largest layer; None if there is no config here."""
    import torch
    from accelerate import init_empty_weights
    from accelerate.utils import calculate_maximum_sizes
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: Any = AutoConfig.from_pretrained(
            name, revision=revision, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError):
        return None
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
        )
    size, (largest, _) = calculate_maximum_sizes(model)
    width = getattr(torch, dtype).itemsize
    return int(size), sum(each.numel() for each in model.parameters()), int(largest) // width
