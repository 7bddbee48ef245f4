"""The recipe: one YAML file that says everything about a run.

`load_recipe` reads it strictly: an unknown key, a wrong type or a TrainingArguments field that rmkit decides itself is
an error that names the file, the key and the nearest known one. This module knows nothing of reward models and imports
no torch; the fields under `training:` are checked against transformers by `training_arguments`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from rmkit.config.strict_yaml import Seed, StrictModel, apply_override, load_yaml, to_yaml, validate
from rmkit.config.training_arguments import training_options
from rmkit.errors import RmkitError

VERIFICATION_PROMPT = "Question: {prompt}\nAnswer: {response}\nVerification: Is the answer correct (Yes/No)?"
"""The EX-GRM input format of Appendix D.2."""

_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_]([\w.-]*/[A-Za-z0-9_])?[\w.-]*", re.ASCII)

SpecialTokens = Literal["text", "keep", "error"]
DTypeName = Literal["float32", "bfloat16"]
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Names of sets become file names, so they hold no separators."""
Text = Annotated[str, Field(min_length=1)]
LocalPath = Annotated[Path, Field(strict=False), AfterValidator(lambda path: Path(os.path.expanduser(path)))]


class Explicit(StrictModel):
    """EX-RM (Eq. 1); `pooling: mean` is the variant of Figure 7."""

    type: Literal["explicit"] = "explicit"
    pooling: Literal["last", "mean"] = "last"


class Implicit(StrictModel):
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


class Generative(StrictModel):
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


class BaseBuild(StrictModel):
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


class Base(StrictModel):
    """The language model that all types start from: a hub id or folder, or one that is built.

    `added_tokens` become tokens of their own, with rows of their own in the embeddings. `dropout: true` keeps the
    dropout of the model's configuration in training; by default there is none.
    """

    name: Text | None = None
    revision: str | None = None
    build: BaseBuild | None = None
    dtype: DTypeName = "float32"
    attention: str | None = None
    dropout: bool = False
    trust_remote_code: bool = False
    chat_template: LocalPath | None = None
    added_tokens: list[Text] = []
    date_string: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Base:
        if (self.name is None) == (self.build is None):
            raise ValueError("give either base.name or base.build")
        return self


def _can_be_compared(value: Any) -> Any:
    """A value of `where`; see `rmkit.data.rows.match_rows`."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(each is None or isinstance(each, str | int | float) for each in values):
        raise ValueError("it must be text, a number, true, false or null, or a list of these")
    if any(isinstance(each, float) and not math.isfinite(each) for each in values):
        raise ValueError("it must be finite")
    return value


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


class PreferenceSet(StrictModel):
    """Where the pairs of a set are.

    `path` is below `data.root`, or a hub id. `source` says how the set is prepared where there is nothing at `path`;
    without a path it is kept under a name of its own. `subset` is a hub configuration; `where` keeps the rows with
    these values in these columns, or with one of a list of values.
    """

    name: SetName
    path: Text | None = None
    source: SourceSettings | None = None
    split: str = "test"
    subset: str | None = None
    where: dict[str, Annotated[Any, AfterValidator(_can_be_compared)]] = {}
    revision: str | None = None
    limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _it_is_somewhere(self) -> PreferenceSet:
        if self.path is None and self.source is None:
            raise ValueError("give a path or a source")
        return self


Category = Literal["in-distribution", "token-level shift", "domain shift", "control"]


class TrainingSet(PreferenceSet):
    """The set that is trained on: the split `train`, unless another is named."""

    split: str = "train"


class EvaluationSet(PreferenceSet):
    """A set that is scored; `category` is its relation to the training set (Section 5.2)."""

    category: Category | None = None


class Data(StrictModel):
    """The training set, the evaluation sets, and what happens to pairs that cannot be used.

    `special_tokens` says what becomes of control tokens that a prompt or response spells: they stay text, are kept as
    tokens (as in the paper's code), or are an error.
    """

    root: LocalPath | None = None
    train: TrainingSet
    evaluation: list[EvaluationSet] = []
    max_length: PositiveInt | None = None
    over_length: Literal["drop", "error"] = "drop"
    identical: Literal["drop", "error"] = "drop"
    special_tokens: SpecialTokens = "text"

    @model_validator(mode="after")
    def _names_are_unique(self) -> Data:
        names = [self.train.name, *(each.name for each in self.evaluation)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sets are named {twice[0]}: every set needs a name of its own")
        return self


class Evaluation(StrictModel):
    """When and how the sets are scored. `train_fit` also scores the training set at the end."""

    every_epoch: bool = False
    train_fit: bool = True
    batch_size: PositiveInt = 16


class Lora(StrictModel):
    """Low-rank adapters (PEFT) instead of full fine-tuning."""

    r: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"


class Theory(StrictModel):
    """Whether run.json also gets the run's learning dynamics (Section 4.1), before and after training.

    `pairs` are the training pairs on which a step is taken; `learning_rate` is that of the step.
    """

    dynamics: bool = False
    pairs: PositiveInt = 8
    learning_rate: PositiveFloat = 1e-6


class Hub(StrictModel):
    """Publishing to the Hugging Face Hub: the finished run, or also the model at every save while training.

    `base` says where others get a base that is a local folder here: a hub id (owner/name or owner/name@revision), or
    `upload`, to upload it to the repository.
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
    def _names_are_the_hubs(self) -> Hub:
        if not _HUB_ID.fullmatch(self.repo_id) or "/" not in self.repo_id:
            raise ValueError(f"repo_id {self.repo_id!r} is not of the form owner/name")
        if self.base is not None and not _HUB_ID.fullmatch(self.base.partition("@")[0]):
            raise ValueError(f"base {self.base!r} is neither a hub id (owner/name or owner/name@revision) nor upload")
        return self


class Recipe(StrictModel):
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
        return to_yaml(self.model_dump(mode="json"))


def training_arguments(recipe: Recipe, source: str = "recipe") -> dict[str, Any]:
    """The keyword arguments for TrainingArguments; see `rmkit.config.training_arguments.training_options`.

    Raises:
        RmkitError: as there; if pushes are asked for at saves that do not happen, or to go on from saves without the
            optimizer's states, which would be another run.
    """
    options = training_options(recipe.training, source)
    if recipe.hub is not None and recipe.hub.push == "every_save" and options["save_strategy"] == "no":
        raise RmkitError(
            f"{source}: hub.push is every_save, but training.save_strategy is no.",
            "Give training.save_strategy steps or epoch, or hub.push end.",
        )
    if recipe.resume == "auto" and options.get("save_only_model"):
        raise RmkitError(
            f"{source}: resume is auto, but with training.save_only_model checkpoints hold no optimizer to go on with.",
            "Set training.save_only_model=false, or resume=never.",
        )
    return options


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
        apply_override(content, override)
    return validate(Recipe, content, str(path))
