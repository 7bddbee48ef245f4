"""reward_model.json: how a saved model computes rewards, which models it was trained from, and in which precision.

The file lies next to those that transformers (or PEFT) saves. It contains the settings of the reward model, base and
reference with their checksums, the checksums of the tokenizer's files, the hash of the chat template and its pinned
date, and the dtype. Loading takes its options from there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import rmkit
from rmkit.config.recipe import DTypeName, LoadIn, RewardModelSettings, SpecialTokens
from rmkit.config.strict_yaml import StrictModel
from rmkit.encoding.batches import Layout
from rmkit.errors import RmkitError
from rmkit.hub.publication import RECORD
from rmkit.model_files.identity import Digests
from rmkit.reward_models.origins import ModelRef, locate

FORMAT = 1


class ModelMetadata(StrictModel):
    """The content of reward_model.json."""

    format: int = FORMAT
    rmkit_version: str = rmkit.__version__
    reward_model: RewardModelSettings
    base: ModelRef | None = None
    reference: ModelRef | None = None
    tokenizer: dict[str, str] | None = None
    adapter: bool = False
    dtype: DTypeName = "float32"
    load_in: LoadIn | None = None
    autocast: bool = False
    attention: str | None = None
    layout: Layout = "shared"
    date_string: str | None = None
    template_hash: str | None = None
    plain_template: bool = True  # see ChatEncoder
    special_tokens: SpecialTokens = "text"

    def precision(self, device: torch.device) -> torch.autocast:
        """A context for computing in the precision of training, which may differ from the dtype of the weights."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast)

    @property
    def four_bit(self) -> DTypeName | None:
        """The dtype in which 4-bit weights of the base are multiplied; None if the base is not quantized."""
        return None if self.load_in is None else "bfloat16" if self.half else "float32"

    @property
    def models(self) -> dict[str, Digests]:
        """Checksums of base, reference and tokenizer, by which a changed one is recognised."""
        origins = {"base": self.base, "reference": self.reference}
        found = {role: origin.digests for role, origin in origins.items() if origin is not None}
        return found | ({} if self.tokenizer is None else {"tokenizer": self.tokenizer})

    @property
    def needs_base(self) -> bool:
        """Whether rewards need the base: it carries the adapters, or is the reference."""
        return self.adapter or getattr(self.reward_model, "reference", None) == "base"

    @property
    def half(self) -> bool:
        """Whether the model computes in bfloat16, at least in part."""
        return self.autocast or self.dtype == "bfloat16"


def read_metadata(path: str) -> ModelMetadata | None:
    """reward_model.json of a local model directory, with current paths of base and reference; None without the file.

    Raises:
        RmkitError: if it is invalid or of another format.
    """
    file = Path(path) / RECORD
    if not os.path.isfile(file):
        return None
    try:
        record = ModelMetadata.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise RmkitError(f"{file}: {where}: {first['msg']}.", "Save the model again with this rmkit.") from None
    if record.format != FORMAT:
        raise RmkitError(f"{file} has format {record.format}.", f"This rmkit reads format {FORMAT}.")
    if "special_tokens" not in record.model_fields_set:  # older than this option: trained with the tokens
        record = record.model_copy(update={"special_tokens": "keep"})
    settings: Any = record.reward_model
    base, reference = record.base, record.reference
    if reference is None and getattr(settings, "reference", None) not in (None, "base", "none"):
        reference = ModelRef(name=settings.reference, revision=settings.reference_revision)
    if base is not None:
        base = locate(base, file.parent)
    if reference is not None:
        reference = locate(reference, file.parent)
        settings = settings.model_copy(update={"reference": reference.name})
    return record.model_copy(update={"reward_model": settings, "base": base, "reference": reference})
