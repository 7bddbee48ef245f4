"""Loading reward models: a run's model/ folder, an adapter on its base, or any transformers model with options."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import PeftModel
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from rmkit.config.recipe import DTypeName, LoadIn, RewardModelSettings, SpecialTokens
from rmkit.config.strict_yaml import StrictModel, validate
from rmkit.encoding.batches import Layout
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.tokenizer import add_rows, load_tokenizer, read_tokenizer
from rmkit.errors import RmkitError
from rmkit.hub.fetch import fetch_published
from rmkit.hub.publication import RECORD
from rmkit.library_errors import library_errors, template_limit
from rmkit.model_files.adapters import Adapter, attach, chain, check_tokens, find_adapter, merge
from rmkit.model_files.gguf import plain_folder
from rmkit.model_files.weights import HEAD, check_config, folder_notes, weight_files
from rmkit.models import language_model
from rmkit.models.quantization import require_four_bit
from rmkit.models.shared_attention import possible_layout
from rmkit.reward_models import RewardModel, make_reward_model, reward_model_class
from rmkit.reward_models.metadata import ModelMetadata, read_metadata
from rmkit.reward_models.origins import ModelRef, check_exists, parse_ref, verify_origin, verify_tokenizer
from rmkit.reward_models.probe import check_classifier
from rmkit.reward_models.saving import keep_generation_config


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


def load(
    name: str,
    *,
    options: dict[str, Any] | None = None,
    revision: str | None = None,
    dtype: DTypeName | None = None,
    load_in: LoadIn | Literal["none"] | None = None,
    attention: str | None = None,
    layout: Layout | None = None,
    date_string: str | None = None,
    chat_template: str | Path | None = None,
    special_tokens: SpecialTokens | None = None,
    trust_remote_code: bool = False,
    policy_only: bool = False,
    base: str | None = None,
    verify: bool = True,
) -> Checkpoint:
    """A reward model from a run's model/ folder, or from any transformers model with `options`.

    Args:
        name: a folder or a hub id, whether published by `rmkit push` or not.
        options: settings that override those of reward_model.json: type, pooling, reference, beta.
        dtype, attention, layout: as recorded, else float32, the architecture's default and shared.
        load_in: 4bit quantizes the base of an adapter, none does not; as recorded, else none.
        chat_template: a Jinja file to use instead of the model's own template.
        special_tokens: how control tokens in texts are treated; as recorded, else text (see `ChatEncoder`).
        policy_only: leave the reference out, for callers that have its outputs.
        base: where the model that training started from is now, if it has moved.
        verify: whether base, reference and tokenizer must be those of training.

    Raises:
        RmkitError: if nothing usable is there, the type is unknown, the head is missing, base or reference are missing
            or have changed, or the reference is the model itself; if this machine cannot load a base in 4 bit.
    """
    if special_tokens not in (None, *get_args(SpecialTokens)):
        raise RmkitError(f"special_tokens {special_tokens!r} is unknown.", "Use text, keep or error.")
    options = {key: value for key, value in (options or {}).items() if value is not None}
    source = _find_source(name, revision, options, base, trust_remote_code)
    encoder, notes = _load_encoder(source, date_string, chat_template, special_tokens, trust_remote_code, verify)
    metadata, quantization_notes = _decide_quantization(source, load_in)
    notes += quantization_notes
    reward_model = make_reward_model(metadata.reward_model, encoder)
    loading: dict[str, Any] = {
        "dtype": dtype or metadata.dtype,
        "attention": attention or metadata.attention,
        "layout": layout or metadata.layout,
        "trust_remote_code": trust_remote_code,
    }
    reference = None
    if reward_model.reference is not None and not policy_only and not _reference_is_base(reward_model, metadata):
        user_named = "reference" in options
        reference = _locate_reference(reward_model, metadata, source.name, user_named)
        notes += _check_before_loading(reward_model, source, reference, ModelRef(name=name, revision=revision), verify)
    if source.adapter is None:
        model: PreTrainedModel | PeftModel = load_model(reward_model, source.origin, **loading)
        notes += folder_notes(source.name)
    else:
        four_bit = {"four_bit": metadata.model_copy(update={"dtype": loading["dtype"]}).four_bit}
        model, base_notes = _load_adapted(reward_model, source, source.adapter, verify, loading | four_bit)
        notes += base_notes
    if reward_model.head and not has_saved_head(source.origin, source.adapter, metadata.base):
        raise RmkitError(
            f"{source.name} has no reward head: it is a language model, not an explicit reward model.",
            "Train it first, or score it with --type implicit or --type generative.",
        )
    notes += possible_layout(loading["layout"], model.config, loading["attention"])[1]
    metadata = metadata.model_copy(update={"dtype": loading["dtype"]})
    checkpoint = Checkpoint(reward_model, model.eval(), None, metadata, notes)
    if reference is not None:
        with _blaming(f"The reference of {source.name}"):
            checkpoint.reference = load_reference(reward_model, reference, **loading)
        if "reference" in options and _same_weights(model, checkpoint.reference):
            raise _identical(source.name, reference.name)
    return checkpoint


@dataclass(frozen=True)
class _Source:
    """A model directory before anything is loaded from it.

    Attributes:
        recorded: its reward_model.json; None for a model that rmkit did not save.
        trained: `recorded`, or what the user's options and the architecture tell.
        metadata: `trained` with the user's settings and base.
        adapter: the adapter in the directory, if it holds one.
    """

    name: str
    revision: str | None
    recorded: ModelMetadata | None
    trained: ModelMetadata
    metadata: ModelMetadata
    adapter: Adapter | None

    @property
    def origin(self) -> ModelRef:
        return ModelRef(name=self.name, revision=self.revision)


def _find_source(
    name: str, revision: str | None, options: dict[str, Any], base: str | None, trust_remote_code: bool
) -> _Source:
    """The model at a folder or hub id: what it holds and how it rewards.

    Raises:
        RmkitError: if that is unknown or contradictory, or a base is given to a model that needs none.
    """
    if not os.path.exists(name) and (published := fetch_published(name, revision)) is not None:
        name, revision = str(published), None
    recorded = read_metadata(name)
    recorded_base = None if recorded is None else recorded.base
    adapter = find_adapter(name, revision, _name_and_revision(recorded_base if base is None else parse_ref(base)))
    trained = recorded or ModelMetadata(
        reward_model=_infer_settings(name, revision, options, trust_remote_code, adapter),
        base=None if adapter is None else ModelRef(name=adapter.base, revision=adapter.base_revision),
        adapter=adapter is not None,
    )
    if trained.adapter != (adapter is not None):
        described, found = ("an adapter", "none") if trained.adapter else ("a whole model", "an adapter")
        raise RmkitError(
            f"{RECORD} in {name} describes {described}, but the folder contains {found}.", "Save the model again."
        )
    settings = trained.reward_model
    if options:
        recorded_type = settings.type
        same_type = options.get("type", recorded_type) == recorded_type
        merged = (settings.model_dump(exclude_unset=True) if same_type else {}) | {"type": recorded_type} | options
        settings = validate(_Settings, {"reward_model": merged}, name).reward_model
    metadata = trained.model_copy(update={"reward_model": settings})
    if base is not None:
        if not metadata.needs_base:
            raise RmkitError(f"A base has no use: {name} is scored without one.", "Remove --base (base=).")
        metadata = metadata.model_copy(update={"base": parse_ref(base)})
    return _Source(name, revision, recorded, trained, metadata, adapter)


def _decide_quantization(source: _Source, load_in: LoadIn | Literal["none"] | None) -> tuple[ModelMetadata, list[str]]:
    """The metadata with the quantization to use, and a note if there is one, or was one in training.

    Raises:
        RmkitError: if that is unknown, meant for a whole model, or not possible on this machine.
    """
    if load_in not in (None, "none", *get_args(LoadIn)):
        raise RmkitError(f"load_in {load_in!r} is unknown.", "Use 4bit or none.")
    metadata, name = source.metadata, source.name
    used = metadata.load_in if load_in is None else None if load_in == "none" else load_in
    notes = []
    if used is not None:
        if source.adapter is None:
            raise RmkitError(
                f"{name} is a whole model; only the base of an adapter is loaded in 4 bit.",
                "Remove --load-in (load_in=).",
            )
        require_four_bit(f"The base of {name} in 4 bit", 'Load it unquantized: --load-in none (load_in="none").')
        trained = ", as in training" if metadata.load_in == used else ""
        notes.append(f"The base of {name} is loaded in 4 bit (NF4){trained}.")
    elif metadata.load_in is not None:
        notes.append(f"The base of {name} is not quantized; it was in 4 bit in training, so rewards differ from those.")
    return metadata.model_copy(update={"load_in": used}), notes


def _load_encoder(
    source: _Source,
    date_string: str | None,
    chat_template: str | Path | None,
    special_tokens: SpecialTokens | None,
    trust_remote_code: bool,
    verify: bool,
) -> tuple[ChatEncoder, list[str]]:
    """The encoder of a model, and notes for the user.

    Raises:
        RmkitError: if `verify` is on and the tokenizer or its template is not the one of training.
    """
    name, metadata = source.name, source.metadata
    if verify:
        verify_tokenizer(metadata.tokenizer, name)
    tokenizer, notes = load_tokenizer(
        name,
        revision=source.revision,
        chat_template=None if chat_template is None else Path(chat_template),
        trust_remote_code=trust_remote_code,
    )
    if source.recorded is not None and not verify:
        notes.append("Not verified: base, reference and tokenizer may not be those of training.")
    with template_limit(name):
        encoder = ChatEncoder(tokenizer, date_string or metadata.date_string, special_tokens or metadata.special_tokens)
    if verify and metadata.template_hash not in (None, encoder.template_hash):
        raise RmkitError(
            f"The chat template {chat_template or f'in {name}'} is not the one that the model was trained with.",
            ("Remove --chat-template" if chat_template else "Restore its tokenizer files")
            + (" and remove --date-string." if date_string else "."),
        )
    return encoder, notes + encoder.notes


def _load_adapted(
    reward_model: RewardModel[Any], source: _Source, adapter: Adapter, verify: bool, loading: dict[str, Any]
) -> tuple[PeftModel, list[str]]:
    """The base with the adapter on it, and notes for the user.

    Raises:
        RmkitError: if the base is missing or has changed, or the adapter changes a base that is also its reference.
    """
    base = _require_base(source.metadata, source.name)
    check_exists("base", base, source.name)
    notes = verify_origin("base", source.trained.base, base, source.name) if verify else []
    with _blaming(f"The base of {source.name}"):
        config = load_config(base.name, base.revision, loading["trust_remote_code"])
        rows = config.get_text_config().vocab_size
        base_model = load_model(reward_model, base, **loading)
    check_tokens(adapter, rows)
    model, changed = attach(base_model, adapter, rows)
    if changed and reward_model.reference == "base":
        raise RmkitError(
            f"The adapter {source.name} changes weights of its base ({changed[0]}), which therefore cannot be its "
            "reference.",
            f"Give --reference {base.name}.",
        )
    return model, notes


def has_saved_head(origin: ModelRef, adapter: Adapter | None = None, base: ModelRef | None = None) -> bool:
    """Whether a reward head is saved with a model, or with the adapter or one of the models that it is put on."""
    if adapter is not None:
        return adapter.saves_head or (base is not None and has_saved_head(base))
    adapters = chain(origin.name, origin.revision)
    whole = ModelRef(name=adapters[-1].base, revision=adapters[-1].base_revision) if adapters else origin
    return any(loaded.saves_head for loaded in adapters) or HEAD in weight_files(whole.name, whole.revision).place


def load_model(
    reward_model: RewardModel[Any],
    origin: ModelRef,
    *,
    dtype: DTypeName = "float32",
    attention: str | None = None,
    layout: Layout = "shared",
    trust_remote_code: bool = False,
    four_bit: DTypeName | None = None,
) -> PreTrainedModel:
    """Load the weights at `origin` as a model of this type, with rows for all tokens and the pad token set.

    An adapter is merged into its base.

    Args:
        four_bit: see `rmkit.models.language_model.load`.
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
        four_bit=four_bit,
        **reward_model.config,
    )
    reward_model.adapt_model(model)
    if reward_model.head and dtype != "float32":
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


def load_reference(reward_model: RewardModel[Any], origin: ModelRef, **loading: Any) -> PreTrainedModel:
    """Load the reference model, frozen.

    Raises:
        RmkitError: if its tokenizer has other ids than the policy's.
    """
    check_reference(reward_model, origin)
    return load_model(reward_model, origin, **loading).requires_grad_(False)


def check_reference(reward_model: RewardModel[Any], origin: ModelRef) -> None:
    """Check the reference and its tokenizer before weights are loaded.

    Raises:
        RmkitError: if there is no model, or its tokenizer has other ids than the policy's.
    """
    load_config(origin.name, origin.revision)
    try:
        theirs = read_tokenizer(origin.name, origin.revision).get_vocab()
    except RmkitError:
        return  # a reference may lack tokenizer files; wrong embeddings fail on use
    ours = reward_model.encoder.tokenizer.get_vocab()
    shared = [token for token in theirs if token in ours]
    if any(theirs[token] != ours[token] for token in shared) or len(shared) < len(theirs) // 2:
        raise RmkitError(
            f"The reference {origin.name} has a different tokenizer than the model.",
            "Give the model that training started from.",
        )


def load_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model, or of an adapter's base.

    Raises:
        RmkitError: if there is none.
    """
    for adapter in chain(name, revision):
        name, revision = adapter.base, adapter.base_revision
    check_config(name, revision)
    with library_errors(
        f"{name} is not a loadable model",
        "Give a run's model/ folder, a folder that holds config.json, or a hub id.",
    ):
        return AutoConfig.from_pretrained(plain_folder(name), revision=revision, trust_remote_code=trust_remote_code)


class _Settings(StrictModel):
    reward_model: RewardModelSettings


def _infer_settings(
    name: str, revision: str | None, options: dict[str, Any], trust_remote_code: bool, adapter: Adapter | None
) -> RewardModelSettings:
    """Settings of a model that rmkit did not save: the user's, or those of a classifier without options.

    Raises:
        RmkitError: if the type is unknown, contradicts the adapter, or needs a reference that is not given.
    """
    if "type" not in options:
        if adapter is None:
            architectures = load_config(name, revision, trust_remote_code).architectures or []
            is_classifier = any(str(model_class).endswith("ForSequenceClassification") for model_class in architectures)
        else:
            is_classifier = adapter.saves_head
        if not is_classifier:
            raise RmkitError(
                f"{name} is a language model and has no {RECORD}: its reward model type is unknown.",
                "Give --type implicit (with --reference and --beta) or --type generative.",
            )
        options = options | {"type": "explicit"}
    settings = validate(_Settings, {"reward_model": options}, name).reward_model
    if adapter is not None and adapter.saves_head and not reward_model_class(settings).head:
        raise RmkitError(f"The adapter {name} belongs to a classifier.", "Score it with --type explicit.")
    needs_reference = getattr(settings, "reference", None) == "base" and "reference" not in options
    if needs_reference and adapter is None:  # an adapter's reference is its base
        raise RmkitError(
            f"The reference of {name} is unknown.",
            "Give --reference MODEL (the model that training started from) or --reference none.",
        )
    return settings


@contextlib.contextmanager
def _blaming(subject: str) -> Iterator[None]:
    """Prefix an error inside with the model that it is about."""
    try:
        yield
    except RmkitError as error:
        raise RmkitError(f"{subject}: {error.cause}", error.remedy) from None


def _name_and_revision(origin: ModelRef | None) -> tuple[str, str | None] | None:
    return None if origin is None else (origin.name, origin.revision)


def _require_base(metadata: ModelMetadata, name: str) -> ModelRef:
    if metadata.base is None:
        raise RmkitError(f"The base of {name} is unknown.", "Give --base MODEL (base=MODEL in Python).")
    return metadata.base


def _reference_is_base(reward_model: RewardModel[Any], metadata: ModelMetadata) -> bool:
    """Whether the reference is the model itself with its adapters off."""
    return metadata.adapter and reward_model.reference == "base"


def _locate_reference(reward_model: RewardModel[Any], metadata: ModelMetadata, name: str, user_named: bool) -> ModelRef:
    """The reference: the one that the user names, else the recorded one."""
    if reward_model.reference == "base":
        return _require_base(metadata, name)
    if user_named:
        return parse_ref(str(reward_model.reference))
    if metadata.reference is not None:
        return metadata.reference
    return ModelRef(
        name=str(reward_model.reference), revision=getattr(reward_model.settings, "reference_revision", None)
    )


def _check_before_loading(
    reward_model: RewardModel[Any], source: _Source, reference: ModelRef, named: ModelRef, verify: bool
) -> list[str]:
    """Refuse an unusable reference while no weights are loaded; returns notes for the user.

    Args:
        named: the model by the name that the user gave, before a published one was fetched.
    """
    role = "base" if reward_model.reference == "base" else "reference"
    check_exists(role, reference, source.name)
    _refuse_identical(named, reference)
    trained = source.trained.reference or source.trained.base
    notes = verify_origin(role, trained, reference, source.name) if verify else []
    with _blaming(f"The reference of {source.name}"):
        check_reference(reward_model, reference)
    return notes


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
