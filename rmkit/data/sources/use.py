"""Sets as recipes and suites name them: loaded from a path, and prepared first where they name a source."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any, Literal

from rmkit.config.recipe import PreferenceSet
from rmkit.config.strict_yaml import validate
from rmkit.data.preferences import PreferenceData, load_preferences
from rmkit.data.sources import find
from rmkit.data.sources.card import read_card
from rmkit.data.sources.prepare import prepare_source
from rmkit.data.sources.released import PREFIX as RELEASED
from rmkit.errors import RmkitError, Unreachable
from rmkit.files import rmkit_cache

_VERSION = 1  # part of every name in the cache: raise it when a source would prepare other pairs with the same options


def load_set(each: PreferenceSet, *, root: Path | None, identical: Literal["drop", "error"] = "drop") -> PreferenceData:
    """The pairs of a set, prepared now if its source has not been yet. Under several processes the main one goes first.

    Raises:
        RmkitError: see `rmkit.data.preferences.load_preferences` and `rmkit.data.sources.prepare.prepare_source`.
    """
    return load_preferences(
        locate(each, root),
        name=each.name,
        split=each.split,
        root=root,
        subset=each.subset,
        revision=each.revision,
        where=each.where,
        limit=each.limit,
        identical=identical,
    )


def ignored_split(each: PreferenceSet, data: PreferenceData) -> str | None:
    """A line on a split that was asked for of a file that has none; None otherwise."""
    if "split" not in each.model_fields_set or data.split is not None:
        return None
    return f"warning: {each.name}: {each.path} has no splits: `split: {each.split}` is ignored"


def locate(each: PreferenceSet, root: Path | None) -> str:
    """Where the pairs of a set are: its path, or the folder into which its source is prepared unless it was before.

    With a source and a path the folder is below `root`. Without a path it has a name that says what is in it, below
    `root` or else in rmkit's cache.

    Raises:
        RmkitError: if it cannot be prepared, or was prepared with other options.
    """
    if each.source is None:
        return str(each.path)
    from filelock import FileLock

    name, given = each.source.name, each.source.options
    error_label = f"the source {name} of {each.name}"
    options = validate(find(name).options, given, error_label).model_dump(mode="json")
    if each.path is not None:
        folder = (root or Path()) / each.path
    else:
        digest = hashlib.sha256(json.dumps([_VERSION, name, options], sort_keys=True).encode()).hexdigest()
        folder = (root or rmkit_cache() / "data") / f"{name.replace('/', '-')}-{digest[:12]}"
    folder = folder.absolute()
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f".{folder.name}.lock"):  # other runs may want it at the same time
                if not folder.exists():
                    prepare_source(name, given, folder, error_label=error_label)
        except Unreachable as error:
            raise RmkitError(
                f"{each.name}: {folder} does not exist, and {error.cause}", _by_hand(name, given, folder, root)
            ) from None
        except OSError as error:
            raise RmkitError(
                f"{each.name} cannot be prepared in {folder.parent}: {error}.", "Give a data.root that can be written."
            ) from None
    _refuse_others(folder, name, options)
    return str(folder)


def _by_hand(name: str, given: dict[str, Any], folder: Path, root: Path | None) -> str:
    """The command that prepares a source from a copy of its data: one that brings all released sets, where it can."""
    source = find(name)
    short = name.removeprefix(RELEASED)
    copy = "COPY" if short == name else "CLONE"
    if short != name and not given and root is not None and folder == (root / short).absolute():
        command = ["prepare", "released", "--source", copy, "--output", str(root)]
    else:
        options = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        command = ["prepare", name, *options, "--source", copy, "--output", str(folder)]
    return f"Bring {source.where} to this machine, as {copy}, and run `rmkit {shlex.join(command)}`."


def _refuse_others(folder: Path, name: str, options: dict[str, Any]) -> None:
    """What is at a path is taken as it is, but not if the same source has made it with other options."""
    card = read_card(folder)
    if card is None or card.get("name") != name:
        return
    there = card.get("options", {})
    other = [key for key in options if key != "source" and there.get(key) != options[key]]
    if other:
        raise RmkitError(
            f"{folder} was prepared with {other[0]} {there.get(other[0])}, not {options[other[0]]}.",
            "Give another path, or the options that are in its card.json, or remove the folder.",
        )
