"""The recipe: one YAML file that says everything about a run.

`load_recipe` reads it strictly: an unknown key, a wrong type or a TrainingArguments field that rmkit decides itself is
an error that names the file, the key and the nearest known one. This module knows nothing of the rest of rmkit and
imports no torch; the fields under `training:` are checked against transformers by `training_arguments`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from rmkit.errors import RmkitError

VERIFICATION_PROMPT = "Question: {prompt}\nAnswer: {response}\nVerification: Is the answer correct (Yes/No)?"
"""The EX-GRM input format of Appendix D.2."""

_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_]([\w.-]*/[A-Za-z0-9_])?[\w.-]*", re.ASCII)

DTypeName = Literal["float32", "bfloat16"]
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Names of sets become file names, so they hold no separators."""


class Section(BaseModel):
    """A part of a recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Explicit(Section):
    """EX-RM (Eq. 1); `pooling: mean` is the variant of Figure 7."""

    type: Literal["explicit"] = "explicit"
    pooling: Literal["last", "mean"] = "last"


class Implicit(Section):
    """IM-RM (Eq. 2). `reference` is `base` (the model that training starts from), `none`, or another model."""

    type: Literal["implicit"] = "implicit"
    beta: PositiveFloat = 0.01
    reference: str = "base"
    reference_revision: str | None = None

    @model_validator(mode="after")
    def _beta_is_said_without_a_reference(self) -> Implicit:
        if self.reference == "none" and "beta" not in self.model_fields_set:
            raise ValueError("beta must be given with `reference: none`: 1 as in the paper's text, 0.01 as in its code")
        return self


class Generative(Section):
    """EX-GRM (Appendix A). `generation_weight` is the lambda of footnote 7."""

    type: Literal["generative"] = "generative"
    yes_token: str = "Yes"
    no_token: str = "No"
    verification_prompt: str = VERIFICATION_PROMPT
    generation_weight: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _prompt_has_its_fields(self) -> Generative:
        for field in ("{prompt}", "{response}"):
            if field not in self.verification_prompt:
                raise ValueError(f"verification_prompt must contain {field}")
        return self


RewardModelSettings = Annotated[Explicit | Implicit | Generative, Field(discriminator="type")]


class BaseBuild(Section):
    """A small language model made on the spot: own tokenizer, Llama architecture, next-token training.

    `corpus: training_texts` takes the prompts and responses of the recipe's training set; `corpus: quickstart` the
    generated corpus of the quickstart. Sizes are in units of the Llama configuration; `batch_size` is in documents.
    """

    corpus: Literal["training_texts", "quickstart"] = "training_texts"
    tokenizer: Literal["bpe", "words"] = "bpe"
    vocabulary_size: PositiveInt = 4096
    hidden_size: PositiveInt = 128
    layers: PositiveInt = 3
    heads: PositiveInt = 4
    steps: PositiveInt = 300
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 2e-3
    max_length: PositiveInt = 1024
    seed: int = 0


class Base(Section):
    """The language model that all types start from: a hub id or folder, or one that is built.

    `added_tokens` become tokens of their own, with rows of their own in the embeddings.
    """

    name: str | None = None
    revision: str | None = None
    build: BaseBuild | None = None
    dtype: DTypeName = "float32"
    attention: str | None = None
    trust_remote_code: bool = False
    chat_template: Path | None = None
    added_tokens: list[Annotated[str, Field(min_length=1)]] = []
    date_string: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Base:
        if (self.name is None) == (self.build is None):
            raise ValueError("give either base.name or base.build")
        return self


class SourceSettings(BaseModel):
    """A set that `rmkit prepare` makes: its name and that source's own options, which the source checks.

    In a recipe either `source: released/ultrafeedback` or `source: {name: rewardmath, train: 1000}`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @model_validator(mode="before")
    @classmethod
    def _a_bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """What is given beside the name."""
        return dict(self.model_extra or {})


class PreferenceSet(Section):
    """Where the pairs of a set are.

    `path` is below `data.root`, or a hub id. `source` says how the set is prepared where there is nothing at `path`;
    without a path it is kept under a name of its own. `subset` is a hub configuration; `where` keeps the rows with
    these values in these columns.
    """

    name: SetName
    path: str | None = None
    source: SourceSettings | None = None
    split: str = "test"
    subset: str | None = None
    where: dict[str, str] = {}
    revision: str | None = None
    limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _it_is_somewhere(self) -> PreferenceSet:
        if self.path is None and self.source is None:
            raise ValueError("give a path or a source")
        return self


Category = Literal["in-distribution", "token-level shift", "domain shift", "control"]


class EvaluationSet(PreferenceSet):
    """A set that is scored; `category` is its relation to the training set (Section 5.2)."""

    category: Category | None = None


class Data(Section):
    """The training set, the evaluation sets, and what happens to pairs that cannot be used."""

    root: Path | None = None
    train: PreferenceSet
    evaluation: list[EvaluationSet] = []
    max_length: PositiveInt | None = None
    over_length: Literal["drop", "error"] = "drop"
    identical: Literal["drop", "error"] = "drop"

    @model_validator(mode="after")
    def _names_are_unique(self) -> Data:
        names = [self.train.name, *(each.name for each in self.evaluation)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sets are named {twice[0]}: every set needs a name of its own")
        return self


class Evaluation(Section):
    """When and how the sets are scored. `train_fit` also scores the training set at the end."""

    every_epoch: bool = False
    train_fit: bool = True
    batch_size: PositiveInt = 16


class Lora(Section):
    """Low-rank adapters (PEFT) instead of full fine-tuning."""

    r: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: NonNegativeFloat = 0.0
    target_modules: str | list[str] = "all-linear"


class Theory(Section):
    """Whether run.json also gets the run's learning dynamics (Section 4.1), before and after training.

    `pairs` are the training pairs on which a step is taken; `learning_rate` is that of the step.
    """

    dynamics: bool = False
    pairs: PositiveInt = 8
    learning_rate: PositiveFloat = 1e-6


class Hub(Section):
    """Publishing to the Hugging Face Hub: the finished run, or also the model at every save while training.

    `base` says where others get a base that is a local folder here: a hub id (owner/name or owner/name@revision), or
    `beside`, to upload it into the repository.
    """

    push: Literal["end", "every_save"]
    repo_id: str
    private: bool = True
    base: str | None = None

    @model_validator(mode="after")
    def _names_are_the_hubs(self) -> Hub:
        if not _HUB_ID.fullmatch(self.repo_id) or "/" not in self.repo_id:
            raise ValueError(f"repo_id {self.repo_id!r} is not of the form owner/name")
        if self.base is not None and not _HUB_ID.fullmatch(self.base.partition("@")[0]):
            raise ValueError(f"base {self.base!r} is neither a hub id (owner/name or owner/name@revision) nor beside")
        return self


class Recipe(Section):
    """A whole run. See docs/recipes.md for every key."""

    base: Base
    reward_model: RewardModelSettings
    data: Data
    lora: Lora | None = None
    training: dict[str, Any] = {}
    evaluation: Evaluation = Evaluation()
    theory: Theory = Theory()
    distributed: str | None = None
    resume: Literal["never", "auto"] = "never"
    hub: Hub | None = None
    output_dir: Path

    def to_yaml(self) -> str:
        """The recipe with every default spelled out, as it is kept in the run directory."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


# --- training: -----------------------------------------------------------------------------------------------------

TRAINING_DEFAULTS: dict[str, Any] = {
    # The paper's optimisation (Appendix D.3), the same for every type of reward model.
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "num_train_epochs": 5,
    "seed": 0,
    # rmkit's own choices.
    "bf16": False,
    "logging_steps": 10,
    "report_to": "none",
    "save_strategy": "no",
}
BATCH_SIZE = 32
MICRO_BATCH_SIZE = 4

OWNED_FIELDS = {
    "output_dir": "output_dir",
    "gradient_checkpointing": "training.activation_checkpointing (its name since transformers 5.23)",
    "gradient_accumulation_steps": "training.batch_size (accumulation follows from it)",
    "deepspeed": "distributed",
    "fsdp": "distributed",
    "fsdp_config": "distributed",
    "parallelism_config": "distributed",
    "accelerator_config": "distributed",
    "max_length": "data.max_length",
    "truncation_mode": "data.over_length",
    "model_init_kwargs": "base",
    "chat_template_path": "base.chat_template",
    "trust_remote_code": "base.trust_remote_code",
    "beta": "reward_model.beta",
    "loss_type": "reward_model.type",
    "reference_free": "reward_model.reference",
    "ref_model": "reward_model.reference",
    "precompute_ref_log_probs": "reward_model.reference",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "eval_strategy": "evaluation.every_epoch",
    "eval_steps": "evaluation.every_epoch",
    "eval_on_start": "evaluation (sets are always scored before training)",
    "push_to_hub": "hub.push",
    "hub_model_id": "hub.repo_id",
    "hub_strategy": "hub.push",
    "hub_token": "`hf auth login` or the variable HF_TOKEN",
    "hub_private_repo": "hub.private",
    "remove_unused_columns": "nothing: rmkit's collator decides what a batch holds",
    "label_names": "nothing: rmkit's collator decides what a batch holds",
    "do_train": "nothing: a recipe always trains",
    "do_eval": "evaluation",
    "do_predict": "evaluation",
    "resume_from_checkpoint": "nothing yet: start again with --overwrite",
    "lora_r": "lora.r",
    "peft_config": "lora",
    "use_cpu": "distributed",
    "local_rank": "distributed",
    "auto_find_batch_size": "training.per_device_train_batch_size",
    "group_by_length": "nothing: the order of the pairs is the same for every type",
    "train_sampling_strategy": "nothing: the order of the pairs is the same for every type",
    "load_best_model_at_end": "nothing: the final model is the one that is scored and saved",
}


def training_arguments(recipe: Recipe, source: str = "recipe") -> dict[str, Any]:
    """The keyword arguments for TrainingArguments, rmkit's defaults under the recipe's `training:`.

    `batch_size` (pairs per optimizer step over all processes) stays in the result: gradient accumulation follows from
    it once the number of processes is known.

    Raises:
        RmkitError: for a field that rmkit decides itself, an unknown field or a value of the wrong type.
    """
    from transformers import TrainingArguments  # slow to import; only needed to check names and types

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    hints = typing.get_type_hints(TrainingArguments)
    hints["batch_size"] = PositiveInt
    for key, value in recipe.training.items():
        if key in OWNED_FIELDS:
            raise RmkitError(f"{source}: training.{key} is decided by rmkit.", f"Use {OWNED_FIELDS[key]} instead.")
        if key not in fields and key != "batch_size":
            known = [name for name in [*fields, "batch_size"] if name not in OWNED_FIELDS]
            raise RmkitError(f"{source}: training.{key} is not a field of TrainingArguments.", _nearest(key, known))
        try:
            TypeAdapter(hints[key], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError:
            wanted = _type_name(hints[key])
            raise RmkitError(f"{source}: training.{key} is {value!r}, not {wanted}.", f"Give it a {wanted}.") from None
    defaults = TRAINING_DEFAULTS | {"batch_size": BATCH_SIZE, "per_device_train_batch_size": MICRO_BATCH_SIZE}
    options = defaults | recipe.training
    if recipe.hub is not None and recipe.hub.push == "every_save" and options["save_strategy"] == "no":
        raise RmkitError(
            f"{source}: hub.push is every_save, but training.save_strategy is no.",
            "Give training.save_strategy steps or epoch, or hub.push end.",
        )
    return options


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_type_name(each) for each in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint))


# --- reading -------------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that reads 1e-6 as a number (YAML 1.1 reads it as text) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        RmkitError: if the file is missing, is not YAML, or holds no mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise RmkitError(f"{path} does not exist.", "Check the path; `ls recipes` lists the shipped recipes.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RmkitError(f"{path} cannot be read: {error}.", "Give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        raise RmkitError(f"{path} is not valid YAML: {error}.", "Mend the line that it names.") from None
    if not isinstance(content, dict):
        raise RmkitError(f"{path} holds no mapping.", "Compare it with a shipped recipe in recipes/.")
    return content


def load_recipe(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides, the values read as YAML.

    Raises:
        RmkitError: naming the file, the key and the nearest known key.
    """
    recipe = read_recipe(path, overrides)
    training_arguments(recipe, str(path))
    return recipe


def read_recipe(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Like `load_recipe`, but the fields under `training:` stay unchecked and transformers is not imported."""
    content = load_yaml(path)
    for override in overrides:
        _apply(content, override)
    return validated(Recipe, content, str(path))


def override_value(override: str) -> tuple[str, Any]:
    """The key and the value of `key=value`, the value read as YAML.

    Raises:
        RmkitError: if it is not of that form.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RmkitError(
            f"The override {override!r} is not of the form section.key=value.", "For example output_dir=runs/a."
        )
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError:
        raise RmkitError(f"The value of the override {override!r} is not YAML.", "Quote it.") from None
    return key, value


def _apply(content: dict[str, Any], override: str) -> None:
    key, value = override_value(override)
    *sections, last = key.split(".")
    at: Any = content
    try:
        for section in sections:
            if isinstance(at, list):
                at = at[int(section)]
            else:
                at[section] = at.get(section) if at.get(section) is not None else {}
                at = at[section]
        if isinstance(at, list):
            at[int(last)] = value
        else:
            at[last] = value
    except (AttributeError, TypeError, ValueError, IndexError):
        raise RmkitError(
            f"The override {override!r} names nothing in the recipe.", "Use the names of the recipe."
        ) from None


SectionType = typing.TypeVar("SectionType", bound=BaseModel)


def validated(section: type[SectionType], content: dict[str, Any], source: str) -> SectionType:
    """`section` from `content`, the first mistake reported as an `RmkitError` that names `source` and the key."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = first["loc"]
        key = ".".join(str(part) for part in location if part not in ("explicit", "implicit", "generative")) or "recipe"
        if first["type"] == "extra_forbidden":
            known = _known_keys(section, location[:-1])
            raise RmkitError(f"{source}: {key} is not a known key.", _nearest(str(location[-1]), known)) from None
        if first["type"] == "missing":
            raise RmkitError(f"{source}: {key} is missing.", "Add it; docs/recipes.md describes every key.") from None
        if first["type"] == "union_tag_not_found":
            raise RmkitError(f"{source}: {key}.type is missing.", "It is explicit, implicit or generative.") from None
        message = first["msg"].removeprefix("Value error, ")
        value = first.get("input")
        shown = f" (it is {value!r})" if not isinstance(value, dict) else ""
        raise RmkitError(f"{source}: {key}: {message}{shown}.", f"Mend {key}; docs/recipes.md describes it.") from None


def _known_keys(section: Any, location: Sequence[int | str]) -> list[str]:
    """The keys of the section at `location` below `section`."""
    for part in location:
        choices = [section, *_inner_types(section)]
        for choice in choices:
            fields = getattr(choice, "model_fields", {})
            if part in fields:
                section = fields[part].annotation
                break
            if "type" in fields and part == fields["type"].default:  # the tag of a discriminated union
                section = choice
                break
    return [key for choice in [section, *_inner_types(section)] for key in getattr(choice, "model_fields", {})]


def _inner_types(hint: Any) -> list[Any]:
    inner: list[Any] = []
    for argument in typing.get_args(hint):
        inner += [argument, *_inner_types(argument)]
    return inner


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known[:12])}."
