"""Every architecture that transformers offers, as a tiny seeded model where its configuration can be shrunk."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

VOCABULARY = 99
LARGEST = 4_000_000  # parameters
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "type_vocab_size": 2,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "embedding_size": 32,
    "emb_dim": 32,
    "word_embed_proj_dim": 32,
    "embed_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "n_inner": 48,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "d_kv": 8,
    "kv_channels": 8,
    "rotary_dim": 4,
    "attention_hidden_size": 32,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "n_groups": 2,
    "num_experts_per_token": 2,
    "topk_group": 1,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "n_ctx": 128,
    "max_seq_len": 128,
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_num_heads": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "time_step_rank": 4,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"]},
    "prophetnet": {"num_decoder_layers": 2, "num_encoder_layers": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 48},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    **{name: {"head_dim": 8} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
}


def tiny_config(model_type: str) -> PretrainedConfig:
    """The configuration of an architecture with its sizes shrunk, those of its parts included."""
    cls = CONFIG_MAPPING[model_type]
    return cls(**_shrunk(cls()) | SPECIAL.get(model_type, {}))


def _shrunk(config: PretrainedConfig) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    told = config.to_dict()
    for key, value in told.items():
        own = vars(config).get(key)
        if isinstance(own, PretrainedConfig):
            changes[key] = type(own)(**_shrunk(own) | SPECIAL.get(own.model_type, {}))
        elif key in SMALL and not isinstance(value, list | dict) and (value is not None or key.endswith("token_id")):
            changes[key] = SMALL[key]
        elif isinstance(value, list) and len(value) == told.get("num_hidden_layers"):
            changes[key] = [SMALL[key]] * 2 if key in SMALL else _two_of(value)
        elif isinstance(value, float) and "drop" in key:
            changes[key] = 0.0
    if "kv_lora_rank" in changes:  # latent attention has no groups
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    return changes


def _two_of(layers: list[Any]) -> list[Any]:
    """The first of a list of layers, and another kind where there is one."""
    return [next((each for each in layers if each != layers[-1]), layers[-1]), layers[-1]]


def tiny_model(auto_class: Any, model_type: str, **config: Any) -> PreTrainedModel:
    """A model of at most a few million parameters, all of them random: biases, norms and scales too.

    Raises:
        Exception: any, where the configuration cannot be shrunk so.
    """
    made = tiny_config(model_type)
    for key, value in config.items():
        setattr(made, key, value)
    with torch.device("meta"):
        size = sum(each.numel() for each in auto_class.from_config(copy.deepcopy(made)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(0)
    model = auto_class.from_config(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn_like(parameter) * spread)
    return model
