"""What the sources share: options, the paper's sampling, and the folder that a preparation writes.

All random numbers of a preparation come from one torch.Generator with its seed, as in the paper's code
(prepare_preference_dataset.py), in this order:

1. draws of the source itself: RewardBench and RewardMATH permute all rows once and split, UltraFeedback draws nothing;
2. a permutation of the training rows that pass the filters, of which the first `train` are used;
3. a permutation of the test rows that pass the filters, of which the first `test` are used.
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
from rmkit.data.rows import load_rows, quiet_datasets
from rmkit.data.sources.card import Card, describe
from rmkit.errors import RmkitError, Unreachable, first_line

if TYPE_CHECKING:
    import datasets
    import torch

PairDict = dict[str, str]
"""A prompt, a chosen and a rejected response."""
Splits = dict[str, list[PairDict]]

PAPER_SEED = 982
PAPER_TOKENIZER = "meta-llama/Llama-3.2-1B"


class Options(StrictModel):
    """Options of every source. `train` and `test` are numbers of pairs; 0 means all.

    `source` is a file or folder with the layout of the hub's data set, to be read instead; `revision` is its commit.
    """

    seed: int = PAPER_SEED
    train: NonNegativeInt = 2000
    test: NonNegativeInt = 200
    source: Path | None = None
    revision: str | None = None


class FilteredOptions(Options):
    """Options of sources with length limits, in tokens including the special tokens that the tokenizer adds.

    Without a tokenizer (`none`) there is no length limit.
    """

    tokenizer: Annotated[str | None, BeforeValidator(lambda name: None if name == "none" else name)] = PAPER_TOKENIZER
    max_prompt: PositiveInt = 512
    max_response: PositiveInt = 512


class Source(ABC):
    """A set that can be prepared.

    Attributes:
        name: used in `rmkit prepare NAME` and in `source: NAME`.
        about: one line of description.
        where: the address of its data.
        options: the schema of its options.
    """

    name: str
    about: str
    where: str
    options: type[StrictModel]

    @abstractmethod
    def write(self, options: Any, folder: Path) -> Card:
        """Write a save_to_disk folder with prompt, chosen and rejected to `folder`, and return its card."""


@dataclass
class Preparation:
    """The argument of a `PairSource`'s function: options, data, random numbers and a log of steps.

    Attributes:
        origin: the hub id of the data, or `generated`.
        revision: the commit of the hub's data that is read; None if unknown.
        steps: the number of rows of every split after each step.
    """

    options: Any
    origin: str
    revision: str | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    _read: set[str] = field(default_factory=set)

    @cached_property
    def generator(self) -> torch.Generator:
        """The random generator of the preparation."""
        import torch

        return torch.Generator().manual_seed(self.options.seed)

    def permutation(self, length: int) -> list[int]:
        """A random permutation of 0..length-1."""
        import torch

        return torch.randperm(length, generator=self.generator).tolist()  # type: ignore[no-any-return]

    def draw(self, length: int) -> int:
        """A random number from 0..length-1."""
        import torch

        return int(torch.randint(length, (1,), generator=self.generator))

    def read(self, split: str, columns: Sequence[str], file: str | None = None) -> datasets.Dataset:
        """The rows of the origin, from the hub or from `options.source`; only of one file, if `file` is given.

        Raises:
            RmkitError: if the data, the split or a column is missing.
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
                    "Give a folder with one file per split.",
                )
            return load_rows(str(local.absolute()), split=split, columns=columns).rows
        if self.revision is None:
            self.revision = self.options.revision or _newest(self.origin)
        if file is not None:
            return load_rows(_hub_file(self.origin, file, self.revision), split=split, columns=columns).rows
        return load_rows(self.origin, split=split, revision=self.revision, columns=columns).rows

    def count(self, step: str, splits: Mapping[str, Sequence[Any]]) -> None:
        """Log the number of rows after a step."""
        self.steps.append({"step": step, "rows": {name: len(rows) for name, rows in splits.items()}})


@dataclass(frozen=True)
class PairSource(Source):
    """A source given by a function from a preparation to the rows of every split.

    Rows are a list or, if they do not fit in memory, an iterator; splits are written in their order.
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
        written = datasets.DatasetDict(
            {split: _dataset(rows, split, working / split) for split, rows in prepared.items()}
        )
        empty = [split for split, rows in written.items() if not len(rows)]
        if empty:
            raise RmkitError(
                f"{self.name}: no row is left for {empty[0]}.", f"Rows by step: {_trail(preparation.steps)}."
            )
        with quiet_datasets():  # bars of steps that take no time
            written.save_to_disk(str(folder))
        where = str(options.source) if options.source is not None else self.origin
        return describe(written, self.name, where, preparation.revision, options, preparation.steps)


def _trail(steps: Sequence[Mapping[str, Any]]) -> str:
    counts = [f"{step['step']}: {' and '.join(map(str, step['rows'].values()))}" for step in steps]
    return "; ".join(counts) or "none"


def _dataset(rows: Iterable[PairDict], split: str, working: Path) -> datasets.Dataset:
    import datasets

    features = datasets.Features({column: datasets.Value("string") for column in ("prompt", "chosen", "rejected")})
    if isinstance(rows, list):
        return datasets.Dataset.from_list(rows, features=features)
    # `datasets` cannot hash a half-used iterator, so it gets a fingerprint; no other set is in this cache_dir.
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
    except Exception as error:  # the hub and the network raise anything
        cause = first_line(error)
        raise Unreachable(
            f"{file} of {hub} cannot be downloaded: {cause}", "Check the network, or give a local copy (--source)."
        ) from None


def _newest(hub: str) -> str | None:
    """The current commit on the hub, for the card; None if the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(hub).sha
    except Exception:  # reading the rows reports it, or finds them in the cache
        return None
