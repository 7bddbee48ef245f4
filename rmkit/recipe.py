"""The recipe: one YAML file that says everything about a run.

`load_recipe` reads it strictly: an unknown key, a wrong type or a TrainingArguments field that rmkit decides itself is
an error that names the file, the key and the nearest known one. This module knows nothing of the rest of rmkit and
imports no torch; the fields under `training:` are checked against transformers by `training_arguments`.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
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
Text = Annotated[str, Field(min_length=1)]
LocalPath = Annotated[Path, Field(strict=False), AfterValidator(lambda path: Path(os.path.expanduser(path)))]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy's generators take."""


class Section(BaseModel):
    """A part of a recipe: immutable; an unknown key, or a value that would have to be converted, is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Explicit(Section):
    """EX-RM (Eq. 1); `pooling: mean` is the variant of Figure 7."""

    type: Literal["explicit"] = "explicit"
    pooling: Literal["last", "mean"] = "last"


class Implicit(Section):
    """IM-RM (Eq. 2). `reference` is `base` (the model that training starts from), `none`, or another model."""

    type: Literal["implicit"] = "implicit"
    beta: PositiveFloat = 0.01
    reference: Text = "base"
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
    seed: Seed = 0


class Base(Section):
    """The language model that all types start from: a hub id or folder, or one that is built.

    `added_tokens` become tokens of their own, with rows of their own in the embeddings.
    """

    name: Text | None = None
    revision: str | None = None
    build: BaseBuild | None = None
    dtype: DTypeName = "float32"
    attention: str | None = None
    trust_remote_code: bool = False
    chat_template: LocalPath | None = None
    added_tokens: list[Text] = []
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
    path: Text | None = None
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

    root: LocalPath | None = None
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
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
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
    """A whole run. See docs/recipes.md for every key.

    `layout: shared` computes what sequences start with alike once and packs them without padding; `padded` gives each
    a row of its own, as TRL does.
    """

    base: Base
    reward_model: RewardModelSettings
    data: Data
    lora: Lora | None = None
    layout: Literal["shared", "padded"] = "shared"
    training: dict[str, Any] = {}
    evaluation: Evaluation = Evaluation()
    theory: Theory = Theory()
    distributed: str | None = None
    resume: Literal["never", "auto"] = "never"
    hub: Hub | None = None
    output_dir: LocalPath

    def to_yaml(self) -> str:
        """The recipe with every default spelled out, as it is kept in the run directory."""
        return str(yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


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
    # rmkit's own key
    "output_dir": "output_dir",
    "gradient_checkpointing": "training.activation_checkpointing",
    "gradient_checkpointing_kwargs": "training.activation_checkpointing_kwargs",
    "gradient_accumulation_steps": "training.batch_size",
    "auto_find_batch_size": "training.per_device_train_batch_size",
    "fp16": "training.bf16",
    "deepspeed": "distributed",
    "fsdp": "distributed",
    "fsdp_config": "distributed",
    "parallelism_config": "distributed",
    "accelerator_config": "distributed",
    "use_cpu": "distributed",
    "local_rank": "distributed",
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
    "lora_r": "lora.r",
    "peft_config": "lora",
    "do_eval": "evaluation",
    "do_predict": "evaluation",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "eval_strategy": "evaluation.every_epoch",
    "eval_steps": "evaluation.every_epoch",
    "bf16_full_eval": "training.bf16",
    "fp16_full_eval": "training.bf16",
    "resume_from_checkpoint": "resume: auto",
    "push_to_hub": "hub.push",
    "hub_model_id": "hub.repo_id",
    "hub_strategy": "hub.push",
    "hub_private_repo": "hub.private",
    "hub_token": "`hf auth login` or the variable HF_TOKEN",
}
REFUSED_FIELDS = {
    # why there is no such key
    "do_train": "a recipe always trains",
    "eval_on_start": "sets are always scored before training",
    "eval_delay": "sets are always scored before training",
    **dict.fromkeys(
        [
            "prediction_loss_only",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "include_for_metrics",
            "batch_eval_metrics",
        ],
        "rmkit scores sets by itself",
    ),
    **dict.fromkeys(
        ["load_best_model_at_end", "metric_for_best_model", "greater_is_better"],
        "the final model is the one that is scored and saved",
    ),
    **dict.fromkeys(
        ["remove_unused_columns", "label_names"],
        "rmkit's collator decides what a batch holds",
    ),
    **dict.fromkeys(
        ["group_by_length", "train_sampling_strategy", "length_column_name"],
        "the order of the pairs is the same for every type",
    ),
    "label_smoothing_factor": "the loss is Eq. 3 or Eq. 7",
    "average_tokens_across_devices": "a step is always the mean over the pairs of all processes",
    "logging_nan_inf_filter": "a loss that is not finite always stops the run",
    "hub_always_push": "every push is waited for",
    "hub_revision": "the default branch is pushed to",
}
_BOUNDS: dict[str, Any] = {
    # What the annotations of TrainingArguments do not say.
    "batch_size": PositiveInt,
    "per_device_train_batch_size": PositiveInt,
    "num_train_epochs": PositiveFloat,
    "learning_rate": NonNegativeFloat,
    "weight_decay": NonNegativeFloat,
    "max_grad_norm": NonNegativeFloat,
    "warmup_steps": NonNegativeFloat,
    "dataloader_num_workers": NonNegativeInt,
    "optim_args": Annotated[str, Field(pattern=r"^\w+=[^=,]+(,\s*\w+=[^=,]+)*$")] | None,
    "seed": Seed,
    "data_seed": Seed | None,
}


def training_arguments(recipe: Recipe, source: str = "recipe") -> dict[str, Any]:
    """The keyword arguments for TrainingArguments, rmkit's defaults under the recipe's `training:`.

    `batch_size` (pairs per optimizer step over all processes) stays in the result: gradient accumulation follows from
    it once the number of processes is known.

    Raises:
        RmkitError: for a field that rmkit decides itself, an unknown field or a value that the field cannot have.
    """
    from transformers import TrainingArguments  # slow to import; only needed to check names and types

    fields = [field.name for field in dataclasses.fields(TrainingArguments)]
    hints = typing.get_type_hints(TrainingArguments) | _BOUNDS
    known = [name for name in [*fields, "batch_size"] if name not in OWNED_FIELDS | REFUSED_FIELDS]
    for key, value in recipe.training.items():
        if key in OWNED_FIELDS:
            raise RmkitError(f"{source}: training.{key} is decided by rmkit.", f"Use {OWNED_FIELDS[key]} instead.")
        if key in REFUSED_FIELDS:
            raise RmkitError(f"{source}: training.{key} is decided by rmkit.", f"Leave it out: {REFUSED_FIELDS[key]}.")
        if key not in known:
            raise RmkitError(f"{source}: training.{key} is not a field of TrainingArguments.", _nearest(key, known))
        _check_value(f"{source}: training.{key}", value, hints[key])
    _check_reporters(recipe, source)
    defaults = TRAINING_DEFAULTS | {"batch_size": BATCH_SIZE, "per_device_train_batch_size": MICRO_BATCH_SIZE}
    options = defaults | recipe.training
    if recipe.hub is not None and recipe.hub.push == "every_save" and options["save_strategy"] == "no":
        raise RmkitError(
            f"{source}: hub.push is every_save, but training.save_strategy is no.",
            "Give training.save_strategy steps or epoch, or hub.push end.",
        )
    return options


def _check_value(key: str, value: Any, hint: Any) -> None:
    choices = [option.value for each in _alternatives(hint) if _is_enum(each) for option in each]
    if choices:  # transformers annotates these fields as any text too
        if value not in choices:
            raise RmkitError(f"{key} is {value!r}, which transformers does not know.", _nearest(str(value), choices))
        return
    try:
        config = ConfigDict(strict=True, arbitrary_types_allowed=True)
        TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        wanted = _type_name(hint) if first["type"].endswith("_type") else _plainly(first)
        raise RmkitError(f"{key} is {value!r}: it must be {wanted}.", f"Mend {key.split()[-1]}.") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise RmkitError(f"{key} is {value!r}: it must be a finite number.", f"Mend {key.split()[-1]}.")


def _check_reporters(recipe: Recipe, source: str) -> None:
    from transformers.integrations import get_available_reporting_integrations

    wanted = recipe.training.get("report_to") or []
    available = ["none", "all", *get_available_reporting_integrations()]
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if name not in available:
            raise RmkitError(
                f"{source}: training.report_to is {name!r}, which is unknown or not installed.",
                f"Install it, or give one of {', '.join(available)}.",
            )


def _alternatives(hint: Any) -> list[Any]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [inner for each in typing.get_args(hint) for inner in _alternatives(each)]
    return [typing.get_args(hint)[0]] if typing.get_origin(hint) is Annotated else [hint]


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    shown = (names.get(each) or ("a mapping" if "dict" in str(each) else "a list") for each in _alternatives(hint))
    return " or ".join(dict.fromkeys(shown))


# --- reading -------------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that reads 1e-6 as a number (YAML 1.1 reads it as text) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        named = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in named]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_StrictLoader` would read as numbers."""


for _reader_or_writer in (_StrictLoader, _Dumper):
    _reader_or_writer.add_implicit_resolver(
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
        near = difflib.get_close_matches(Path(path).name, [each.name for each in Path(path).parent.glob("*.yaml")], n=1)
        remedy = f"Did you mean {Path(path).with_name(near[0])}?" if near else "`ls recipes` lists the shipped recipes."
        raise RmkitError(f"{path} does not exist.", remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RmkitError(f"{path} cannot be read: {error}.", "Give the path of a YAML file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-01 looks like a date
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
    if not separator or not all(key.split(".")):
        raise RmkitError(
            f"The override {_shown(override)} is not of the form section.key=value.", "For example output_dir=runs/a."
        )
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RmkitError(f"The value of the override {_shown(override)} is not YAML.", "Quote it.") from None
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
            f"The override {_shown(override)} names nothing in the recipe.",
            "Name the keys as the recipe does, and entries of lists by number, from 0.",
        ) from None


SectionType = typing.TypeVar("SectionType", bound=BaseModel)


def validated(section: type[SectionType], content: dict[str, Any], source: str) -> SectionType:
    """`section` from `content`, the first mistake reported as an `RmkitError` that names `source` and the key."""
    try:
        # By way of JSON, where a path is text even if values are never converted; so is what JSON lacks (dates).
        return section.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = first["loc"]
        parts = [str(part) for at, part in enumerate(location) if not (at and location[at - 1] == "reward_model")]
        tagged = first["type"].startswith("union_tag")
        key = ".".join([*parts, "type"] if tagged else parts) or "recipe"
        value = first.get("input")
        if first["type"] == "extra_forbidden":
            known = _known_keys(section, location[:-1])
            raise RmkitError(f"{source}: {key} is not a known key.", _nearest(str(location[-1]), known)) from None
        if first["type"] == "missing":
            raise RmkitError(f"{source}: {key} is missing.", "Add it; docs/recipes.md describes every key.") from None
        if first["type"] == "union_tag_not_found":
            raise RmkitError(f"{source}: {key} is missing.", "It is explicit, implicit or generative.") from None
        if tagged:
            value = first["ctx"]["tag"]
            near = _nearest(value, ["explicit", "implicit", "generative"])
            raise RmkitError(f"{source}: {key} is {value!r}.", near) from None
        if first["type"] == "value_error":
            message = first["msg"].removeprefix("Value error, ")
            raise RmkitError(f"{source}: {key}: {message}.", f"Mend {key}; docs/recipes.md describes it.") from None
        remedy = f"Mend {key}; docs/recipes.md describes it."
        if first["type"] in ("string_type", "path_type") and value is not None and not isinstance(value, dict | list):
            remedy = "Put quotes around it, so that YAML reads it as text."
        if first["type"] == "literal_error" and isinstance(value, str):
            remedy = _nearest(value, re.findall("'([^']*)'", first["ctx"]["expected"]))
        raise RmkitError(f"{source}: {key} is {_shown(value)}: it must be {_plainly(first)}.", remedy) from None
    except ValueError:  # of json: a YAML alias inside what it stands for
        raise RmkitError(f"{source} contains itself.", "Remove the alias (*name) from what it names.") from None


_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys to values",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than": "below {lt}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "path_type": "a path",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores",
    "string_too_short": "longer",
    "string_type": "text",
}


def _plainly(error: Any) -> str:
    """What a value must be, in words for people who have never heard of pydantic."""
    wanted = _WANTED.get(error["type"])
    return str(error["msg"]) if wanted is None else wanted.format(**error.get("ctx", {}))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
    near = difflib.get_close_matches(key, known, n=1)
    more = ", ..." if len(known) > 12 else ""
    return f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known[:12])}{more}."
