"""The recipe: one YAML file that describes a run completely.

`load_recipe` parses it strictly: an unknown key, a wrong type or a TrainingArguments field that rmkit sets itself is an
error that names the file and the key and suggests the closest known key. This module defines the schema only and
imports no torch; `training_arguments` checks the fields under `training:` against transformers.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from rmkit.config.evaluation import Evaluation, check_evaluation
from rmkit.config.resources import find_recipe
from rmkit.config.strict_yaml import (
    ONE,
    SEVERAL,
    Seed,
    StrictModel,
    apply_override,
    dotted_keys,
    load_yaml,
    to_yaml,
    validate,
)
from rmkit.config.training_arguments import training_fields, training_options
from rmkit.errors import RmkitError

VERIFICATION_PROMPT = "Question: {prompt}\nAnswer: {response}\nVerification: Is the answer correct (Yes/No)?"
"""The input format of EX-GRMs (Appendix D.2)."""

_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_]([\w.-]*/[A-Za-z0-9_])?[\w.-]*", re.ASCII)

SpecialTokens = Literal["text", "keep", "error"]
Pairing = Literal["best_worst", "all", "adjacent"]
Templated = Literal["error", "read", "text"]
DTypeName = Literal["float32", "bfloat16"]
LoadIn = Literal["4bit"]
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A set's name. It is used as a file name, so separators are not allowed."""
Text = Annotated[str, Field(min_length=1)]
LocalPath = Annotated[Path, Field(strict=False), AfterValidator(lambda path: Path(os.path.expanduser(path)))]


class Explicit(StrictModel):
    """EX-RM (Eq. 1); `pooling: mean` is the variant of Figure 7."""

    type: Literal["explicit"] = "explicit"
    pooling: Literal["last", "mean"] = "last"


class Implicit(StrictModel):
    """IM-RM (Eq. 2). `reference`: `base` (the model that training starts from), `none`, or another model."""

    type: Literal["implicit"] = "implicit"
    beta: PositiveFloat = 0.01
    reference: Text = "base"
    reference_revision: str | None = None

    @model_validator(mode="after")
    def _require_beta_without_reference(self) -> Implicit:
        if self.reference == "none" and "beta" not in self.model_fields_set:
            raise ValueError("beta must be given with `reference: none`: 1 in the paper's text, 0.01 in its code")
        return self


class Generative(StrictModel):
    """EX-GRM (Appendix A). `generation_weight` is the lambda of footnote 7."""

    type: Literal["generative"] = "generative"
    yes_token: str = "Yes"
    no_token: str = "No"
    verification_prompt: str = VERIFICATION_PROMPT
    generation_weight: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _require_prompt_fields(self) -> Generative:
        for field in ("{prompt}", "{response}"):
            if field not in self.verification_prompt:
                raise ValueError(f"verification_prompt must contain {field}")
        return self


RewardModelSettings = Annotated[Explicit | Implicit | Generative, Field(discriminator="type")]


class BaseBuild(StrictModel):
    """A small language model that rmkit builds: its own tokenizer, Llama architecture, next-token training.

    `corpus: training_texts` trains on the prompts and responses of the recipe's training set; `corpus: quickstart` on
    the generated corpus of the quickstart. Sizes are in units of the Llama configuration; `batch_size` is in documents.
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


class Base(StrictModel):
    """The language model that all types start from: a hub id, a folder, or a model to build.

    `added_tokens` become single tokens with new embedding rows. `dropout: true` keeps the dropout of the model's
    configuration during training; the default is no dropout. `load_in: 4bit` quantizes the linear layers under adapters
    (QLoRA).
    """

    name: Text | None = None
    revision: str | None = None
    build: BaseBuild | None = None
    dtype: DTypeName = "float32"
    load_in: LoadIn | None = None
    attention: str | None = None
    dropout: bool = False
    trust_remote_code: bool = False
    chat_template: LocalPath | None = None
    added_tokens: list[Text] = []
    date_string: str | None = None

    @model_validator(mode="after")
    def _require_one_origin(self) -> Base:
        if (self.name is None) == (self.build is None):
            raise ValueError("give either base.name or base.build")
        if self.build is not None and self.load_in is not None:
            raise ValueError("base.load_in is for a pretrained model (base.name), not for base.build")
        return self


def _check_where_value(value: Any) -> Any:
    """Validate a value of `where`; see `rmkit.data.rows.match_rows`."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(item is None or isinstance(item, str | int | float) for item in values):
        raise ValueError("it must be text, a number, true, false or null, or a list of these")
    if any(isinstance(item, float) and not math.isfinite(item) for item in values):
        raise ValueError("it must be finite")
    return value


class SourceSettings(BaseModel):
    """A source of `rmkit prepare`: its name and its own options, which the source validates.

    In a recipe, either `source: released/ultrafeedback` or `source: {name: rewardmath, train: 1000}`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """The options of the source."""
        return dict(self.model_extra or {})


class PreferenceSet(StrictModel):
    """The location of a set of pairs.

    `path` is relative to `data.root`, or a hub id. `source` prepares the set if nothing exists at `path`; without a
    path, rmkit stores the set in its cache. `split` may be a slice or a sum, see `rmkit.data.splits`; `where` and
    `limit` apply to its rows. `subset` is a hub configuration. `where` keeps the rows whose columns have the given
    value, or one of a list of values. `columns` names the columns of prompt, chosen, rejected, system, history, tools,
    chat_template_kwargs and margin where they have other names; margin may be two columns of scores, whose difference
    it is. `pairing` says which of several responses with scores become pairs (default: best_worst). `templated` decides
    about texts to which a chat template was already applied: an error, reading them back into turns, or as they are.
    `limit` keeps the first rows, or with `limit_seed` as many rows drawn with that seed.
    """

    name: SetName
    path: Text | None = None
    source: SourceSettings | None = None
    split: str = "test"
    subset: str | None = None
    where: dict[str, Annotated[Any, AfterValidator(_check_where_value)]] = {}
    columns: dict[str, str | list[str]] = {}
    pairing: Pairing | None = None
    templated: Templated = "error"
    revision: str | None = None
    limit: PositiveInt | None = None
    limit_seed: Seed | None = None

    @model_validator(mode="after")
    def _require_location(self) -> PreferenceSet:
        if self.path is None and self.source is None:
            raise ValueError("give a path or a source")
        if self.limit_seed is not None and self.limit is None:
            raise ValueError("limit_seed draws the rows of a limit: give a limit, or remove limit_seed")
        return self


Category = Literal["in-distribution", "token-level shift", "domain shift", "control"]


class TrainingSet(PreferenceSet):
    """A training set; its split defaults to `train`.

    `weight` is the share of its pairs in an epoch: 0.5 draws half of them, once for the whole run; 2 takes every pair
    twice, and 2.5 half of them a third time.
    """

    split: str = "train"
    weight: PositiveFloat = 1.0


class EvaluationSet(PreferenceSet):
    """An evaluation set; `category` is its relation to the training set (Section 5.2)."""

    category: Category | None = None


VALIDATION = "validation"
"""The name of the set that `data.validation` cuts off the training sets."""


def _check_validation(value: Any) -> Any:
    """Validate `data.validation`; see `rmkit.data.mixture.cut_validation`."""
    if value is None or (type(value) is int and value > 0) or (type(value) is float and 0 < value < 1):
        return value
    raise ValueError("it must be a fraction of the prompts, above 0 and below 1, or a number of prompts")


class Data(StrictModel):
    """The training set or sets, the evaluation sets, and how to treat pairs that cannot be used.

    `validation` cuts an evaluation set of this name off the training sets, by prompt. `seed` decides its prompts and
    what a `weight` draws. `special_tokens` decides how control tokens spelled out in a prompt or response are read: as
    text, as the tokens (as in the paper's code), or as an error.
    """

    root: LocalPath | None = None
    train: Annotated[
        Annotated[TrainingSet, Tag(ONE)] | Annotated[list[TrainingSet], Tag(SEVERAL), Field(min_length=1)],
        Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
    ]
    validation: Annotated[Any, AfterValidator(_check_validation)] = None
    seed: Seed = 0
    evaluation: list[EvaluationSet] = []
    max_length: PositiveInt | None = None
    over_length: Literal["drop", "error"] = "drop"
    identical: Literal["drop", "error"] = "drop"
    special_tokens: SpecialTokens = "text"

    @model_validator(mode="after")
    def _require_unique_names(self) -> Data:
        names = [each.name for each in (*self.training_sets, *self.evaluation)]
        names += [VALIDATION] if self.validation is not None else []
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"two sets are named {duplicates[0]}: every set needs a unique name")
        return self

    @property
    def training_sets(self) -> list[TrainingSet]:
        """The training sets, whether `train` is one or a list."""
        return self.train if isinstance(self.train, list) else [self.train]

    @property
    def categories(self) -> dict[str, Category | None]:
        """The category of every set that is evaluated."""
        cut: dict[str, Category | None] = {} if self.validation is None else {VALIDATION: "in-distribution"}
        return cut | {each.name: each.category for each in self.evaluation}


class Lora(StrictModel):
    """Low-rank adapters (PEFT) instead of full fine-tuning.

    `use_dora` trains the magnitudes of weights apart from their directions. Modules in `modules_to_save` are trained
    whole; an explicit model's head always is. The patterns give some modules (ends of names, or regular expressions)
    another `r` or `alpha`.
    """

    r: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False
    modules_to_save: list[Text] = []
    rank_pattern: dict[str, PositiveInt] = {}
    alpha_pattern: dict[str, PositiveInt] = {}


class Hub(StrictModel):
    """Publishing to the Hugging Face Hub: the finished run, or also the model at every save during training.

    `base` is for a base that is a local folder: the hub id under which others find it (owner/name or
    owner/name@revision), or `upload`, to upload it into the repository.
    """

    push: Literal["end", "every_save"]
    repo_id: str
    private: bool = True
    base: str | None = None

    @field_validator("base")
    @classmethod
    def _accept_the_former_name(cls, base: str | None) -> str | None:
        return "upload" if base == "beside" else base

    @model_validator(mode="after")
    def _require_hub_names(self) -> Hub:
        if not _HUB_ID.fullmatch(self.repo_id) or "/" not in self.repo_id:
            raise ValueError(f"repo_id {self.repo_id!r} is not of the form owner/name")
        if self.base is not None and not _HUB_ID.fullmatch(self.base.partition("@")[0]):
            raise ValueError(f"base {self.base!r} is neither a hub id (owner/name or owner/name@revision) nor upload")
        return self


class Recipe(StrictModel):
    """A complete run. docs/recipes.md describes every key.

    `layout: shared` computes shared prefixes once and packs sequences without padding; `padded` pads every sequence to
    a row, as TRL does.
    """

    base: Base
    reward_model: RewardModelSettings
    data: Data
    lora: Lora | None = None
    layout: Literal["shared", "padded"] = "shared"
    training: dict[str, Any] = {}
    evaluation: Evaluation = Evaluation()
    distributed: str | None = None
    resume: Literal["never", "auto"] = "never"
    hub: Hub | None = None
    output_dir: LocalPath

    @model_validator(mode="before")
    @classmethod
    def _drop_removed_keys(cls, content: Any) -> Any:
        """Recipes and run directories of earlier versions have a section `theory`; `load_recipe` notes it."""
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if key != "theory"}

    @model_validator(mode="after")
    def _require_adapters_on_a_quantized_base(self) -> Recipe:
        if self.base.load_in is not None and self.lora is None:
            raise ValueError("base.load_in: 4bit trains adapters only, so give a section lora")
        return self

    def to_yaml(self) -> str:
        """The recipe with every default written out, as stored in the run directory."""
        return to_yaml(self.model_dump(mode="json"))


def training_arguments(recipe: Recipe, source: str = "recipe") -> dict[str, Any]:
    """The keyword arguments for TrainingArguments; see `rmkit.config.training_arguments.training_options`.

    Raises:
        RmkitError: as there; if `hub.push` waits for saves that never happen, or the run would resume from checkpoints
            without optimizer states, which would make it a different run.
    """
    options = training_options(recipe.training, source, dotted_keys(Recipe))
    if recipe.hub is not None and recipe.hub.push == "every_save" and options["save_strategy"] == "no":
        raise RmkitError(
            f"{source}: hub.push is every_save, but training.save_strategy is no.",
            "Set training.save_strategy=epoch or =steps, or hub.push=end.",
        )
    if recipe.resume == "auto" and options.get("save_only_model"):
        raise RmkitError(
            f"{source}: resume is auto, but with training.save_only_model checkpoints hold no optimizer state.",
            "Set training.save_only_model=false, or resume=never.",
        )
    check_evaluation(recipe.evaluation, list(recipe.data.categories), source)
    return options


def load_recipe(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, apply overrides and validate every key.

    Args:
        path: a recipe file, or the name of a shipped recipe (see `find_recipe`).
        overrides: `section.key=value`; values are parsed as YAML.

    Raises:
        RmkitError: naming the file and the key, and suggesting the closest known key.
    """
    recipe, wants_dynamics = _read(path, overrides)
    training_arguments(recipe, str(path))
    if wants_dynamics:
        _note_removed_theory(str(path))
    return recipe


def read_recipe(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Like `load_recipe`, but does not validate the fields under `training:`, and does not import transformers."""
    return _read(path, overrides)[0]


def _read(path: Path | str, overrides: Iterable[str]) -> tuple[Recipe, bool]:
    """A recipe, and whether it asks for the learning dynamics, as recipes of earlier versions could."""
    content = load_yaml(find_recipe(path))
    for override in overrides:
        apply_override(content, override)
    theory = content.get("theory")
    recipe = validate(Recipe, content, str(path), lambda: (f"training.{name}" for name in training_fields()))
    return recipe, bool(theory.get("dynamics") if isinstance(theory, dict) else theory)


@functools.cache
def _note_removed_theory(source: str) -> None:
    """Once per recipe, and only on the first process."""
    if os.environ.get("RANK", "0") == "0":
        print(
            f"note: {source}: `theory:` is ignored; run `rmkit theory dynamics RUN` after training instead.",
            file=sys.stderr,
        )
