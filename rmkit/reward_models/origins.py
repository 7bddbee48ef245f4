"""Where a model comes from: base and reference by name, what tells them from changed ones, and where they are now."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from rmkit.config.strict_yaml import StrictModel
from rmkit.errors import RmkitError
from rmkit.hub.publication import BASE, REFERENCE
from rmkit.model_files.adapters import chain
from rmkit.model_files.identity import (
    CONFIGS,
    Digests,
    changed_files,
    hub_commit,
    model_digests,
    on_main_process,
    tokenizer_digests,
)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_VERIFY = "--no-verify (verify=False in Python)"


class ModelRef(StrictModel):
    """A model by name.

    Attributes:
        name: a hub id or a folder.
        revision: of the hub id; runs record the commit.
        files: sha256 of a folder's files, as they were in training.
        relative: the folder as seen from the model directory.
        bases: of an adapter: sha256 of the files, or the commit, of the model that it is put on.
    """

    name: str
    revision: str | None = None
    files: dict[str, str] | None = None
    relative: str | None = None
    bases: dict[str, str] | None = None

    @property
    def digests(self) -> Digests:
        """All that tells it from a changed one: sha256 by file, and the commit."""
        commit = {} if self.revision is None else {"commit": self.revision}
        return (self.files or {}) | (self.bases or {}) | commit


def identify(origin: ModelRef, directory: Path) -> ModelRef:
    """With what a run records of it: the commit, or the digests and both paths. All processes call it together."""
    folder = Path(origin.name)
    bases = on_main_process(lambda: _base_digests(origin))
    if os.path.isdir(folder):
        return ModelRef(
            name=os.path.abspath(folder),
            files=on_main_process(lambda: model_digests(folder)),
            relative=os.path.relpath(folder, directory),
            bases=bases,
        )
    try:
        return ModelRef(name=origin.name, revision=hub_commit(origin.name, origin.revision), bases=bases)
    except (OSError, ValueError):  # not there: whoever loads it says so
        return origin


def _base_digests(origin: ModelRef) -> dict[str, str] | None:
    """sha256 of the files, or the commit, of what an adapter is put on, of the base of that, and so on."""
    found: dict[str, str] = {}
    prefix = "base/"
    for adapter in chain(origin.name, origin.revision):
        folder = Path(adapter.base)
        local = os.path.isdir(folder)
        its = model_digests(folder) if local else {"commit": hub_commit(adapter.base, adapter.base_revision)}
        found |= {f"{prefix}{name}": digest for name, digest in its.items()}
        prefix += "base/"
    return found or None


def locate(origin: ModelRef, directory: Path) -> ModelRef:
    """The same by where it is now.

    A folder is looked for as it was recorded (in records of old, from the working directory), then where it lay as
    seen from the model directory: both may have moved together.
    """
    if origin.name in (f"./{BASE}", f"./{REFERENCE}"):  # published beside the model
        return origin.model_copy(update={"name": str(directory / origin.name)})
    places = [Path(origin.name), directory / (origin.relative or origin.name), directory.parent / origin.name]
    found = next((place for place in places if _holds_a_model(place)), None)
    return origin if found is None else origin.model_copy(update={"name": str(found)})


def moved(place: str) -> ModelRef:
    """A model at the place that the user names: a folder, or a hub id that may end in @revision."""
    hub_id, _, revision = (place, "", "") if os.path.exists(place) else place.partition("@")
    return ModelRef(name=hub_id, revision=revision or None)


def check_there(role: str, origin: ModelRef, model: str) -> None:
    """Look for a base or reference before anything is loaded.

    Args:
        role: base or reference.
        model: what it is the base or reference of.

    Raises:
        RmkitError: if it is not there, naming the option that says where it is.
    """
    if _holds_a_model(Path(origin.name)):
        return
    local = os.path.exists(origin.name) or os.path.isabs(origin.name) or origin.files is not None
    try:
        if not local:
            hub_commit(origin.name, origin.revision)
            return
        why = "no model is in that folder"
    except (OSError, ValueError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    raise RmkitError(
        f"The {role} of {model} is missing: {origin.name} ({why}).",
        f"Put it back, or say where it is now: --{role} MODEL ({role}=MODEL in Python).",
    )


def verify_origin(role: str, recorded: ModelRef | None, used: ModelRef, model: str) -> list[str]:
    """Compare a base or reference with the one of training; returns a line where that cannot be done.

    Raises:
        RmkitError: if it is another, naming the files that differ.
    """
    if recorded is None or (recorded.files is None and not _COMMIT.fullmatch(recorded.revision or "")):
        return []  # nothing is known: saved by an rmkit that recorded nothing
    folder, files = Path(used.name), recorded.files
    if os.path.isdir(folder) != (files is not None):
        return [f"{used.name} could not be compared with the {role} of training: a folder against a hub repository."]
    if files is not None:
        changed = on_main_process(lambda: changed_files(files, model_digests(folder)))
    else:
        commit = on_main_process(lambda: hub_commit(used.name, used.revision))
        changed = [] if commit == recorded.revision else [f"commit {commit[:12]}, not {str(recorded.revision)[:12]}"]
    if (bases := recorded.bases) is not None:
        changed += on_main_process(lambda: changed_files(bases, _base_digests(used) or {}))
    if changed:
        raise RmkitError(
            f"{used.name} is not the {role} that {model} was trained with. Changed: {', '.join(changed)}.",
            f"Put that one back, say where it is (--{role} MODEL; {role}=MODEL in Python), or go on with {_NO_VERIFY}.",
        )
    return []


def verify_tokenizer(recorded: Mapping[str, str] | None, model: str) -> None:
    """Compare the tokenizer's files in a model directory with those of training.

    Raises:
        RmkitError: if they are others, naming them.
    """
    folder = Path(model)
    if recorded is None or not os.path.isdir(folder):
        return
    changed = on_main_process(lambda: changed_files(recorded, tokenizer_digests(folder)))
    if changed:
        raise RmkitError(
            f"The tokenizer in {model} is not the one that the model was trained with. Changed: {', '.join(changed)}.",
            f"Restore these files, or go on with {_NO_VERIFY}.",
        )


def _holds_a_model(folder: Path) -> bool:
    # os.path takes any text for a path, also one that is too long to be one.
    return any(os.path.isfile(folder / name) for name in CONFIGS)
