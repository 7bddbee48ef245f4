"""The workspace of a table: pairs, tokenizer, base model with random weights, the same with a reward head, counts."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks import pairs as sets
from benchmarks.arithmetic import Counts, Work, counts
from benchmarks.setting import SEED, Setting, Workspace
from benchmarks.shapes import Shape
from rmkit.config.recipe import BaseBuild, Explicit, Generative, Implicit, RewardModelSettings
from rmkit.data.conversations import messages
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.pairs import encode_pairs
from rmkit.files import replacing, write_json
from rmkit.models.tiny_base import train_tokenizer
from rmkit.reward_models import make_reward_model

_SMALLEST_VOCABULARY, _LARGEST_VOCABULARY = 420, 32768
_MAX_POSITIONS = 8192


def prepare(setting: Setting, data: Path | None, folder: Path) -> None:
    """Write the workspace to `folder`, whole or not at all, with pairs of the released sets in `data` or made ones.

    Raises:
        RmkitError: if the pairs are not there.
    """
    training = sets.training_pairs(data, setting.pairs)
    scored = sets.scored_pairs(data, setting.scoring_pairs)
    with replacing(folder) as temporary:
        workspace = Workspace(temporary)
        (temporary / "scored").mkdir(parents=True)
        sets.write_pairs(workspace.train, training)
        for name, pairs in scored.items():
            sets.write_pairs(temporary / "scored" / f"{name}.jsonl", pairs)
        everything = [*training, *(pair for pairs in scored.values() for pair in pairs)]
        tokenizer = _tokenizer(setting.shape, everything)
        _save_models(setting.shape, tokenizer, workspace)
        found = _counts(ChatEncoder(tokenizer), training, scored)
        write_json(workspace.counts, {work: each.as_dict() for work, each in found.items()})


def _tokenizer(shape: Shape, pairs: list[PreferencePair]) -> PreTrainedTokenizerBase:
    """A byte-level BPE with the paper's template, whose turns end and begin with special tokens.

    So the ids of prompt and response are the same whether they are tokenised together, as TRL does, or apart.
    """
    documents = [
        [*messages(pair.prompt), {"role": "assistant", "content": response}]
        for pair in pairs
        for response in (pair.chosen, pair.rejected)
    ]
    size = min(max(shape.vocabulary_size, _SMALLEST_VOCABULARY), _LARGEST_VOCABULARY)
    return train_tokenizer(BaseBuild(vocabulary_size=size), documents)


def _save_models(shape: Shape, tokenizer: PreTrainedTokenizerBase, workspace: Workspace) -> None:
    config = LlamaConfig(
        vocab_size=shape.vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        max_position_embeddings=_MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    with torch.device("cuda" if shape.device == "gpu" else "cpu"):
        model = LlamaForCausalLM(config).to(getattr(torch, shape.dtype))
    model.save_pretrained(workspace.base)
    tokenizer.save_pretrained(workspace.base)
    del model
    torch.manual_seed(SEED)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        workspace.base, num_labels=1, problem_type="regression", dtype=getattr(torch, shape.dtype)
    )
    classifier.save_pretrained(workspace.classifier)
    tokenizer.save_pretrained(workspace.classifier)


def _counts(
    encoder: ChatEncoder, training: list[PreferencePair], scored: dict[str, list[PreferencePair]]
) -> dict[Work, Counts]:
    every = [pair for pairs in scored.values() for pair in pairs]
    read: dict[Work, tuple[RewardModelSettings, list[PreferencePair]]] = {
        "explicit": (Explicit(), training),
        "implicit": (Implicit(), training),
        "generative": (Generative(), training),
        "scoring": (Explicit(), every),
    }
    found: dict[Work, Counts] = {}
    for work, (settings, pairs) in read.items():
        encoded = encode_pairs(PreferenceData(work, pairs), make_reward_model(settings, encoder))
        found[work] = counts(work, zip(encoded.chosen, encoded.rejected, strict=True))
    return found
