"""What the sources share: options, the paper's sampling, and the folder that a preparation leaves.

All of a preparation's randomness is drawn from one torch.Generator with the preparation's seed, as in the paper's code
(prepare_preference_dataset.py), in this order:

1. what the source itself draws: RewardBench and RewardMATH permute all rows once and split, UltraFeedback nothing;
2. a permutation of the training rows that are left after the filters, of which the first `train` are taken;
3. a permutation of the test rows that are left, of which the first `test` are taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, NonNegativeInt, PositiveInt

from rmkit.config.strict_yaml import StrictModel
from rmkit.data.rows import load_rows
from rmkit.data.sources.card import Card, describe
from rmkit.errors import RmkitError, Unreachable

if TYPE_CHECKING:
    import datasets
    import torch

PairDict = dict[str, str]
"""A prompt, a chosen and a rejected response."""
Splits = dict[str, list[PairDict]]

PAPER_SEED = 982
PAPER_TOKENIZER = "meta-llama/Llama-3.2-1B"


class Options(StrictModel):
    """What every source can be told. `train` and `test` are numbers of pairs, 0 for all that there are.

    `source` is a file or folder with the layout of the hub's data set, which is then not asked; `revision` its commit.
    """

    seed: int = PAPER_SEED
    train: NonNegativeInt = 2000
    test: NonNegativeInt = 200
    source: Path | None = None
    revision: str | None = None


class FilteredOptions(Options):
    """Options of sources whose pairs must not be too long, in tokens with the special ones that the tokenizer adds.

    Without a tokenizer (`none`) no length is looked at.
    """

    tokenizer: Annotated[str | None, BeforeValidator(lambda name: None if name == "none" else name)] = PAPER_TOKENIZER
    max_prompt: PositiveInt = 512
    max_response: PositiveInt = 512


class Source(ABC):
    """A set that can be prepared.

    Attributes:
        name: as in `rmkit prepare NAME` and in `source: NAME`.
        about: a line on what it is.
        where: the address of its data.
        options: the schema of what it can be told.
    """

    name: str
    about: str
    where: str
    options: type[StrictModel]

    @abstractmethod
    def write(self, options: Any, folder: Path) -> Card:
        """Leave a save_to_disk folder of prompt, chosen and rejected at `folder`, and return its card."""


@dataclass
class Preparation:
    """What the function of a `PairSource` works with.

    Attributes:
        origin: the hub id of the data, or what made them.
        revision: the commit of the hub's data that is read, None if not known.
        steps: how many rows of each split were left after each step.
    """

    options: Any
    origin: str
    revision: str | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    _read: set[str] = field(default_factory=set)

    @cached_property
    def generator(self) -> torch.Generator:
        """The one generator of the preparation."""
        import torch

        return torch.Generator().manual_seed(self.options.seed)

    def permutation(self, length: int) -> list[int]:
        """A permutation of 0..length-1."""
        import torch

        return torch.randperm(length, generator=self.generator).tolist()  # type: ignore[no-any-return]

    def draw(self, length: int) -> int:
        """One of 0..length-1."""
        import torch

        return int(torch.randint(length, (1,), generator=self.generator))

    def read(self, split: str, columns: Sequence[str], file: str | None = None) -> datasets.Dataset:
        """The rows of the origin, from the hub or from `options.source`; of one file of it, if that is named.

        Raises:
            RmkitError: if there is nothing, or no such split or column.
        """
        local = self.options.source
        if local is not None:
            if not local.exists():
                raise RmkitError(f"The source {local} does not exist.", "Give a file or folder with the hub's layout.")
            if file is not None and local.is_dir():
                local = local / file
            self._read.add(split)
            if local.is_file() and len(self._read) > 1:
                raise RmkitError(
                    f"The source {local} is one file, but the splits {' and '.join(sorted(self._read))} are needed.",
                    "Give the folder that holds a file for each.",
                )
            return load_rows(str(local.absolute()), split=split, columns=columns)[0]
        if self.revision is None:
            self.revision = self.options.revision or _newest(self.origin)
        if file is not None:
            return load_rows(_hub_file(self.origin, file, self.revision), split=split, columns=columns)[0]
        return load_rows(self.origin, split=split, revision=self.revision, columns=columns)[0]

    def count(self, step: str, splits: Mapping[str, Sequence[Any]]) -> None:
        """Note what is left after a step."""
        self.steps.append({"step": step, "rows": {name: len(rows) for name, rows in splits.items()}})


@dataclass(frozen=True)
class PairSource(Source):
    """A source that is a function from a preparation to the rows of each split.

    Rows may be a list or, where there are too many to hold, an iterator; splits are then written in their order.
    """

    name: str
    about: str
    origin: str
    options: type[StrictModel]
    splits: Callable[[Preparation], Mapping[str, Iterable[PairDict]]]

    @property
    def where(self) -> str:  # type: ignore[override]
        return f"https://huggingface.co/datasets/{self.origin}"

    def write(self, options: Any, folder: Path) -> Card:
        import datasets

        preparation = Preparation(options, self.origin)
        prepared = self.splits(preparation)
        working = folder.parent / f".{folder.name}.rows"
        made = datasets.DatasetDict({split: _dataset(rows, split, working / split) for split, rows in prepared.items()})
        empty = [split for split, rows in made.items() if not len(rows)]
        if empty:
            raise RmkitError(f"{self.name}: no row is left for {empty[0]}.", f"Left after {_trail(preparation.steps)}.")
        made.save_to_disk(str(folder))
        where = str(options.source) if options.source is not None else self.origin
        return describe(made, self.name, where, preparation.revision, options, preparation.steps)


def _trail(steps: Sequence[Mapping[str, Any]]) -> str:
    counts = [f"{each['step']}: {' and '.join(map(str, each['rows'].values()))}" for each in steps]
    return "; ".join(counts) or "nothing"


def _dataset(rows: Iterable[PairDict], split: str, working: Path) -> datasets.Dataset:
    import datasets

    features = datasets.Features({column: datasets.Value("string") for column in ("prompt", "chosen", "rejected")})
    if isinstance(rows, list):
        return datasets.Dataset.from_list(rows, features=features)
    # The fingerprint is given because a half-used iterator cannot be hashed; the folder is ours alone.
    try:
        return datasets.Dataset.from_generator(
            lambda: rows, features=features, cache_dir=str(working), split=split, fingerprint=split
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, RmkitError):
            raise error.__cause__ from None
        raise


def _hub_file(hub: str, file: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return str(hf_hub_download(hub, file, repo_type="dataset", revision=revision))
    except Exception as error:  # whatever the hub and the network raise
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreachable(
            f"{file} of {hub} cannot be fetched: {cause}", "Check the network, or give a local copy (--source)."
        ) from None


def _newest(hub: str) -> str | None:
    """The hub's present commit, so that the card can say what was read; None where the hub is not reached."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(hub).sha
    except Exception:  # reading the rows says what is wrong, or takes them from the cache
        return None
