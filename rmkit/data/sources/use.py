"""Loading the sets of recipes and suites: from a path, or from a source that is prepared on first use."""

from __future__ import annotations

import hashlib
import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rmkit.config.recipe import Data, PreferenceSet
from rmkit.config.strict_yaml import validate
from rmkit.data.mixture import cut_validation, refuse_mixed_margins, sample
from rmkit.data.preferences import PreferenceData, load_preferences
from rmkit.data.sources import find
from rmkit.data.sources.card import read_card
from rmkit.data.sources.prepare import prepare_source
from rmkit.data.sources.released import PREFIX as RELEASED
from rmkit.data.splits import ignored_split
from rmkit.errors import RmkitError, Unreachable
from rmkit.files import rmkit_cache

_VERSION = 1  # part of the names in the cache: increase it when a source prepares other pairs with the same options


def load_set(
    settings: PreferenceSet, *, root: Path | None, identical: Literal["drop", "error"] = "drop"
) -> PreferenceData:
    """The pairs of a set; its source is prepared if that has not been done. With several processes call main first.

    Raises:
        RmkitError: see `rmkit.data.preferences.load_preferences` and `rmkit.data.sources.prepare.prepare_source`.
    """
    return load_preferences(
        locate(settings, root),
        name=settings.name,
        split=settings.split,
        root=root,
        subset=settings.subset,
        revision=settings.revision,
        where=settings.where,
        limit=settings.limit,
        limit_seed=settings.limit_seed,
        identical=identical,
        columns=settings.columns,
        pairing=settings.pairing,
        templated=settings.templated,
    )


def load_sets(data: Data) -> dict[str, PreferenceData]:
    """All sets of a recipe by name: the training sets, what `data.validation` cuts off them, the evaluation sets.

    A weight below 1 has been applied; one above 1 is left to `rmkit.encoding.pairs.training_rows`.

    Raises:
        RmkitError: see `load_set` and `rmkit.data.mixture`.
    """
    load = partial(load_set, root=data.root, identical=data.identical)
    training, cut = [load(each) for each in data.training_sets], []
    refuse_mixed_margins(training)
    if data.validation is not None:
        training, validation = cut_validation(training, data.validation, data.seed)
        cut = [validation]
    training = [sample(each, of.weight, data.seed) for each, of in zip(training, data.training_sets, strict=True)]
    return {each.name: each for each in (*training, *cut, *map(load, data.evaluation))}


def reading_notes(settings: PreferenceSet, data: PreferenceData) -> list[str]:
    """Lines on how a set was read: its format if it is not plain texts, and a `split` that a file does not have."""
    lines = [f"{settings.name}: {data.format}"] if data.format else []
    if "split" in settings.model_fields_set and data.split is None:
        written = f"`split: {settings.split}`"
        lines.append(f"warning: {settings.name}: {ignored_split(settings.path, settings.split, written)}")
    return lines


def locate(settings: PreferenceSet, root: Path | None) -> str:
    """The path of a set, or the folder of its source, which is prepared if it does not exist.

    With a source and a path the folder is below `root`. Without a path its name is derived from the options, below
    `root` or else in rmkit's cache.

    Raises:
        RmkitError: if the source cannot be prepared, or was prepared with other options.
    """
    if settings.source is None:
        return str(settings.path)
    from filelock import FileLock

    name, given = settings.source.name, settings.source.options
    error_label = f"the source {name} of {settings.name}"
    options = validate(find(name).options, given, error_label).model_dump(mode="json")
    if settings.path is not None:
        folder = (root or Path()) / settings.path
    else:
        digest = hashlib.sha256(json.dumps([_VERSION, name, options], sort_keys=True).encode()).hexdigest()
        folder = (root or rmkit_cache() / "data") / f"{name.replace('/', '-')}-{digest[:12]}"
    folder = folder.absolute()
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f".{folder.name}.lock"):  # other runs may prepare it at the same time
                if not folder.exists():
                    prepare_source(name, given, folder, error_label=error_label)
        except Unreachable as error:
            raise RmkitError(
                f"{settings.name}: {folder} does not exist, and {error.cause}",
                _offline_remedy(name, given, folder, root),
            ) from None
        except OSError as error:
            raise RmkitError(
                f"{settings.name} cannot be prepared in {folder.parent}: {error}.", "Give a writable data.root."
            ) from None
    _refuse_others(folder, name, options)
    return str(folder)


def _offline_remedy(name: str, given: dict[str, Any], folder: Path, root: Path | None) -> str:
    """The command that prepares a source from a copy of its data, or all released sets from a clone if possible."""
    source = find(name)
    short = name.removeprefix(RELEASED)
    copy = "COPY" if short == name else "CLONE"
    if short != name and not given and root is not None and folder == (root / short).absolute():
        command = ["prepare", "released", "--source", copy, "--output", str(root)]
    else:
        options = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        command = ["prepare", name, *options, "--source", copy, "--output", str(folder)]
    return f"Copy {source.where} to this machine, as {copy}, and run `rmkit {shlex.join(command)}`."


def _refuse_others(folder: Path, name: str, options: dict[str, Any]) -> None:
    """An existing folder is used unchanged, unless the same source prepared it with other options."""
    card = read_card(folder)
    if card is None or card.get("name") != name:
        return
    used = card.get("options", {})
    other = [key for key in options if key != "source" and used.get(key) != options[key]]
    if other:
        raise RmkitError(
            f"{folder} was prepared with {other[0]} {used.get(other[0])}, not {options[other[0]]}.",
            "Give another path, use the options in its card.json, or remove the folder.",
        )
