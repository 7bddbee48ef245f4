"""Model directories: what transformers (and PEFT) save, plus reward_model.json, which says how to reward with it.

reward_model.json holds the settings of the reward model (type, pooling, beta, verification tokens), base and reference
with what tells them from changed ones, the tokenizer's digests, the chat template's hash and the pinned date, the
dtype. Options come from there on loading.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel

import rmkit
from rmkit.config.recipe import DTypeName, RewardModelSettings, SpecialTokens
from rmkit.config.strict_yaml import StrictModel, validate
from rmkit.encoding.batches import Layout
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.tokenizer import add_rows, load_tokenizer
from rmkit.errors import RmkitError
from rmkit.files import replacing, write_json
from rmkit.hub.fetch import fetch_published
from rmkit.hub.publication import RECORD
from rmkit.library_errors import library_errors, template_limit
from rmkit.model_files.adapters import Adapter, attach, chain, check_tokens, find_adapter, merge
from rmkit.model_files.identity import Digests
from rmkit.model_files.weights import HEAD, check_config, folder_notes, weight_files
from rmkit.models import language_model
from rmkit.models.dropout import ConfigValue, own_dropout
from rmkit.models.shared_attention import possible_layout
from rmkit.reward_models import RewardModel, make_reward_model
from rmkit.reward_models.origins import ModelRef as ModelRef
from rmkit.reward_models.origins import check_there, locate, moved, verify_origin, verify_tokenizer
from rmkit.reward_models.probe import check_classifier

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
    autocast: bool = False
    attention: str | None = None
    layout: Layout = "shared"
    date_string: str | None = None
    template_hash: str | None = None
    special_tokens: SpecialTokens = "text"

    def precision(self, device: torch.device) -> torch.autocast:
        """The precision in which the model was trained, beyond the dtype of its weights: a context to compute in."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast)

    @property
    def models(self) -> dict[str, Digests]:
        """What tells base, reference and tokenizer from changed ones."""
        origins = {"base": self.base, "reference": self.reference}
        found = {role: each.digests for role, each in origins.items() if each is not None}
        return found | ({} if self.tokenizer is None else {"tokenizer": self.tokenizer})

    @property
    def half(self) -> bool:
        """Whether the model computes in bfloat16, at least in part."""
        return self.autocast or self.dtype == "bfloat16"


@dataclass
class Checkpoint:
    """A reward model with its weights, and its reference's where that is a model of its own."""

    reward_model: RewardModel[Any]
    model: PreTrainedModel | PeftModel
    reference: PreTrainedModel | None
    record: ModelMetadata
    notes: list[str] = field(default_factory=list)

    @property
    def reference_is_base(self) -> bool:
        """Whether the reference is the model itself with its adapters off."""
        return self.record.adapter and self.reward_model.reference == "base"


def load_model(
    reward_model: RewardModel[Any],
    origin: ModelRef,
    *,
    dtype: DTypeName = "float32",
    attention: str | None = None,
    layout: Layout = "shared",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The weights at `origin` as a model of this type, with rows for all tokens and the pad token set.

    An adapter is merged into its base.
    """
    tokenizer = reward_model.encoder.tokenizer
    adapters = chain(origin.name, origin.revision)
    if adapters:
        origin = ModelRef(name=adapters[-1].base, revision=adapters[-1].base_revision)
    if reward_model.head:
        config = load_config(origin.name, origin.revision, trust_remote_code)
        check_classifier(origin.name, config, trust_remote_code)
    model = language_model.load(
        reward_model.auto_class,
        origin.name,
        revision=origin.revision,
        dtype=dtype,
        attention=attention,
        layout=layout,
        trust_remote_code=trust_remote_code,
        **reward_model.config,
    )
    reward_model.adapt_model(model)
    if reward_model.head and not model.missing_head and dtype != "float32":
        _restore_head(model, origin)
    for adapter in reversed(adapters):
        model = merge(model, adapter)
    add_rows(model, tokenizer)
    keep_generation_config(model)
    for config in (model.config.get_text_config(), getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
    reward_model.adapt_model(model)
    return model


class BaseGenerationConfig(GenerationConfig):
    """The base's own, saved as it is: transformers refuses to write what it only warns of on reading."""

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Refuse only what cannot be loaded either."""
        super().validate(False, user_set_attributes)


def keep_generation_config(model: PreTrainedModel) -> None:
    """Let a model's generation_config.json be saved in every case: how a base generates is no reason to lose a run."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.__class__ = BaseGenerationConfig


def save(
    directory: Path,
    model: PreTrainedModel | PeftModel,
    state_dict: dict[str, Tensor],
    reward_model: RewardModel[Any],
    record: ModelMetadata,
    dropout: Sequence[ConfigValue] = (),
) -> None:
    """Write a model directory, whole or not at all.

    Args:
        state_dict: the gathered weights.
        dropout: what config.json says of dropout, where training turned it off (`rmkit.models.dropout`).

    Raises:
        RmkitError: if a tensor is empty (ZeRO-3 without gathering) or not finite.
    """
    for name, tensor in state_dict.items():
        if tensor.numel() == 0:
            raise RmkitError(f"The weight {name} is empty: it was not gathered.", "Report this as a bug.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RmkitError(
                f"The weight {name} is not finite: training has diverged.",
                "Lower training.learning_rate, or use base.dtype: float32.",
            )
    # Added rows are a function of the base's, so adapters need no copy of the embeddings.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    with replacing(directory) as temporary, own_dropout(dropout):
        model.save_pretrained(temporary, state_dict=dict(state_dict), **options)  # it drops what is tied
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's card; rmkit writes its own when it publishes
        reward_model.encoder.tokenizer.save_pretrained(temporary)
        write_json(temporary / RECORD, record.model_dump(mode="json"))


def read_record(path: str) -> ModelMetadata | None:
    """reward_model.json of a local model directory, base and reference by where they are now; None where there is none.

    Raises:
        RmkitError: if it is broken or of another format.
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
        raise RmkitError(f"{file} is of format {record.format}.", f"This rmkit reads format {FORMAT}.")
    if "special_tokens" not in record.model_fields_set:  # older than the choice: trained with the tokens
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


def load(
    name: str,
    *,
    options: dict[str, Any] | None = None,
    revision: str | None = None,
    dtype: DTypeName | None = None,
    attention: str | None = None,
    layout: Layout | None = None,
    date_string: str | None = None,
    special_tokens: SpecialTokens | None = None,
    trust_remote_code: bool = False,
    policy_only: bool = False,
    base: str | None = None,
    verify: bool = True,
) -> Checkpoint:
    """A reward model from a run's model/, or from any transformers model with `options` (the reward_model section).

    Args:
        name: a folder or a hub id, of a repository that `rmkit push` has made or any other.
        options: settings that go before those of reward_model.json: type, pooling, reference, beta.
        dtype, attention, layout: as recorded, else float32, the architecture's default and shared.
        special_tokens: what becomes of control tokens that texts spell; as recorded, else text (see `ChatEncoder`).
        policy_only: leave the reference out, for callers that have its outputs.
        base: where the model that training started from is now, if not where it was.
        verify: whether base, reference and tokenizer must be those of training.

    Raises:
        RmkitError: if nothing usable is there, the type cannot be told, the head is missing, base or reference are
            missing or have changed, or the reference is the model itself.
    """
    if special_tokens not in (None, *get_args(SpecialTokens)):
        raise RmkitError(f"special_tokens {special_tokens!r} is not known.", "Give text, keep or error.")
    options = {key: value for key, value in (options or {}).items() if value is not None}
    named = ModelRef(name=name, revision=revision)
    if not os.path.exists(name) and (published := fetch_published(name, revision)) is not None:
        name, revision = str(published), None
    recorded = read_record(name)
    told = None if recorded is None else recorded.base
    adapter = find_adapter(name, revision, _place(told if base is None else moved(base)))
    record = recorded or ModelMetadata(
        reward_model=_guessed(name, revision, options, trust_remote_code, adapter),
        base=None if adapter is None else ModelRef(name=adapter.base, revision=adapter.base_revision),
        adapter=adapter is not None,
    )
    if record.adapter != (adapter is not None):
        is_, is_not = ("an adapter", "none") if record.adapter else ("a whole model", "an adapter")
        raise RmkitError(f"{name} is {is_} by its {RECORD}, and it holds {is_not}.", "Save the model again.")
    settings = record.reward_model
    if options:
        same_type = options.get("type", settings.type) == settings.type
        merged = (settings.model_dump(exclude_unset=True) if same_type else {}) | {"type": settings.type} | options
        settings = validate(_Settings, {"reward_model": merged}, name).reward_model
    of_training = record
    if base is not None:
        if not record.adapter and getattr(settings, "reference", None) != "base":
            raise RmkitError(f"A base is of no use: {name} is scored without one.", "Leave --base (base=) out.")
        record = record.model_copy(update={"base": moved(base)})
    if verify:
        verify_tokenizer(record.tokenizer, name)
    tokenizer, notes = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    if recorded is not None and not verify:
        notes.append("Not verified: base, reference and tokenizer may not be those of training.")
    with template_limit(name):
        encoder = ChatEncoder(tokenizer, date_string or record.date_string, special_tokens or record.special_tokens)
    if verify and record.template_hash not in (None, encoder.template_hash):
        raise RmkitError(
            f"The chat template in {name} is not the one that the model was trained with.",
            "Restore its tokenizer files" + (" and leave --date-string out." if date_string else "."),
        )
    reward_model = make_reward_model(settings, encoder)
    loading: dict[str, Any] = {
        "dtype": dtype or record.dtype,
        "attention": attention or record.attention,
        "layout": layout or record.layout,
        "trust_remote_code": trust_remote_code,
    }
    origin = ModelRef(name=name, revision=revision)
    reference = None
    if (
        reward_model.reference is not None
        and not (record.adapter and reward_model.reference == "base")
        and not policy_only
    ):
        reference = _reference_origin(reward_model, record, name, given="reference" in options)
        role = "base" if reward_model.reference == "base" else "reference"
        check_there(role, reference, name)
        _refuse_identical(named, reference)  # what can be known before weights load
        if verify:
            notes += verify_origin(role, of_training.reference or of_training.base, reference, name)
        with _said_of(f"The reference of {name}"):
            check_reference(reward_model, reference)
    if adapter is not None:
        its_base = _base(record, name)
        check_there("base", its_base, name)
        if verify:
            notes += verify_origin("base", of_training.base, its_base, name)
        with _said_of(f"The base of {name}"):
            rows = load_config(its_base.name, its_base.revision, trust_remote_code).get_text_config().vocab_size
            base_model = load_model(reward_model, its_base, **loading)
        check_tokens(adapter, rows)
        missing_head = base_model.missing_head and not adapter.saves_head
        model, changed = attach(base_model, adapter, rows)
        if changed and reward_model.reference == "base":
            raise RmkitError(
                f"The adapter {name} changes weights of its base ({changed[0]}), which is not its reference any more.",
                f"Give --reference {its_base.name}.",
            )
    else:
        model = load_model(reward_model, origin, **loading)
        missing_head = model.missing_head
    if reward_model.head and missing_head:
        raise RmkitError(
            f"{name} has no reward head: it is a language model, not an explicit reward model.",
            "Train it first, or score it with --type implicit or --type generative.",
        )
    if adapter is None:
        notes += folder_notes(name)
    notes += possible_layout(loading["layout"], model.config, loading["attention"])[1]
    record = record.model_copy(update={"reward_model": settings, "dtype": loading["dtype"]})
    checkpoint = Checkpoint(reward_model, model.eval(), None, record, notes)
    if reference is not None:
        with _said_of(f"The reference of {name}"):
            checkpoint.reference = load_reference(reward_model, reference, **loading)
        if "reference" in options and _same_weights(model, checkpoint.reference):
            raise _identical(name, reference.name)
    return checkpoint


def load_reference(reward_model: RewardModel[Any], origin: ModelRef, **loading: Any) -> PreTrainedModel:
    """The reference's model, frozen.

    Raises:
        RmkitError: if its tokenizer numbers tokens in another way than the policy's.
    """
    check_reference(reward_model, origin)
    return load_model(reward_model, origin, **loading).requires_grad_(False)


def check_reference(reward_model: RewardModel[Any], origin: ModelRef) -> None:
    """Look for a reference, and at its tokenizer, before weights are loaded.

    Raises:
        RmkitError: if there is no model, or its tokenizer numbers tokens in another way than the policy's.
    """
    load_config(origin.name, origin.revision)
    try:
        theirs = load_tokenizer(origin.name, revision=origin.revision)[0].get_vocab()
    except RmkitError:
        return  # a reference may come without tokenizer files; its embeddings are checked by their use
    ours = reward_model.encoder.tokenizer.get_vocab()
    shared = [token for token in theirs if token in ours]
    if any(theirs[token] != ours[token] for token in shared) or len(shared) < len(theirs) // 2:
        raise RmkitError(
            f"The reference {origin.name} has another tokenizer than the model.",
            "Give the model that training started from.",
        )


class _Settings(StrictModel):
    reward_model: RewardModelSettings


def _guessed(
    name: str, revision: str | None, options: dict[str, Any], trust_remote_code: bool, adapter: Adapter | None
) -> RewardModelSettings:
    """Settings for a model that rmkit did not save: the type as asked, else as its architecture tells.

    The reference of an adapter is its base.
    """
    if "type" not in options:
        if adapter is None:
            architectures = load_config(name, revision, trust_remote_code).architectures or []
            is_classifier = any(str(each).endswith("ForSequenceClassification") for each in architectures)
        else:
            is_classifier = adapter.saves_head
        if not is_classifier:
            raise RmkitError(
                f"{name} is a language model and has no {RECORD}: how it rewards is not known.",
                "Say --type implicit (with --reference and --beta) or --type generative.",
            )
        options = options | {"type": "explicit"}
    if adapter is not None and adapter.saves_head and options["type"] != "explicit":
        raise RmkitError(f"The adapter {name} is a classifier's.", "Score it with --type explicit.")
    if options["type"] == "implicit" and "reference" not in options and adapter is None:
        raise RmkitError(
            f"{name} does not say what its reference is.",
            "Give --reference MODEL (the model that training started from) or --reference none.",
        )
    return validate(_Settings, {"reward_model": options}, name).reward_model


def load_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model; of an adapter, its base's.

    Raises:
        RmkitError: if there is none.
    """
    for adapter in chain(name, revision):
        name, revision = adapter.base, adapter.base_revision
    check_config(name, revision)
    with library_errors(
        f"{name} is no model that can be loaded",
        "Give a run's model/ folder, a folder that holds config.json, or a hub id.",
    ):
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Say of an error inside whose it is."""
    try:
        yield
    except RmkitError as error:
        raise RmkitError(f"{what}: {error.cause}", error.remedy) from None


def _place(origin: ModelRef | None) -> tuple[str, str | None] | None:
    return None if origin is None else (origin.name, origin.revision)


def _base(record: ModelMetadata, name: str) -> ModelRef:
    if record.base is None:
        raise RmkitError(f"{name} does not say what its base is.", "Give --base MODEL (base=MODEL in Python).")
    return record.base


def _reference_origin(reward_model: RewardModel[Any], record: ModelMetadata, name: str, given: bool) -> ModelRef:
    """The reference: as the user gives it, else as recorded."""
    if reward_model.reference == "base":
        return _base(record, name)
    if given:
        return moved(str(reward_model.reference))
    if record.reference is not None:
        return record.reference
    return ModelRef(
        name=str(reward_model.reference), revision=getattr(reward_model.settings, "reference_revision", None)
    )


def _refuse_identical(model: ModelRef, reference: ModelRef) -> None:
    def place(origin: ModelRef) -> tuple[str, str | None]:
        return (str(Path(origin.name).resolve()) if os.path.exists(origin.name) else origin.name), origin.revision

    if place(model) == place(reference):
        raise _identical(model.name, reference.name)


def _same_weights(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _identical(name: str, reference: str) -> RmkitError:
    return RmkitError(
        f"The reference {reference} is identical to the model {name}: every reward would be 0.",
        "Give the model that training started from, or --reference none.",
    )


def _restore_head(model: PreTrainedModel, origin: ModelRef) -> None:
    """The head as saved, in float32: transformers has cast it to the dtype of the rest."""
    files = weight_files(origin.name, origin.revision)
    if HEAD in files.place:
        model.score.weight.data.copy_(files.read(HEAD))
