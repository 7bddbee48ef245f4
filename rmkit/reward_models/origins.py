"""References to base and reference models: their names, checksums, and current places."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from rmkit.config.strict_yaml import StrictModel
from rmkit.errors import RmkitError
from rmkit.hub.publication import BASE, REFERENCE
from rmkit.model_files.adapters import chain
from rmkit.model_files.gguf import gguf_file, is_local
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
    """A model by name, with what identifies it.

    Attributes:
        name: a hub id or a folder.
        revision: revision of the hub id; runs record the commit.
        files: file name -> sha256 in a folder at the time of training.
        relative: path of the folder relative to the model directory.
        bases: of an adapter, the sha256 of the files, or the commit, of its base.
    """

    name: str
    revision: str | None = None
    files: dict[str, str] | None = None
    relative: str | None = None
    bases: dict[str, str] | None = None

    @property
    def digests(self) -> Digests:
        """All checksums: sha256 by file, and the commit."""
        commit = {} if self.revision is None else {"commit": self.revision}
        return (self.files or {}) | (self.bases or {}) | commit


def identify(origin: ModelRef, directory: Path) -> ModelRef:
    """Add what a run records: the commit, or checksums and both paths. All processes must call it together."""
    folder = Path(origin.name)
    bases = on_main_process(lambda: _base_digests(origin))
    if is_local(folder):
        return ModelRef(
            name=os.path.abspath(folder),
            files=on_main_process(lambda: model_digests(folder)),
            relative=os.path.relpath(folder, directory),
            bases=bases,
        )
    try:
        return ModelRef(name=origin.name, revision=hub_commit(origin.name, origin.revision), bases=bases)
    except (OSError, ValueError):  # missing: loading reports it
        return origin


def _base_digests(origin: ModelRef) -> dict[str, str] | None:
    """sha256 of the files, or the commit, of an adapter's base, of the base of that base, and so on."""
    found: dict[str, str] = {}
    prefix = "base/"
    for adapter in chain(origin.name, origin.revision):
        folder = Path(adapter.base)
        local = is_local(folder)
        its = model_digests(folder) if local else {"commit": hub_commit(adapter.base, adapter.base_revision)}
        found |= {f"{prefix}{name}": digest for name, digest in its.items()}
        prefix += "base/"
    return found or None


def locate(origin: ModelRef, directory: Path) -> ModelRef:
    """The same model at its current place.

    A folder is looked up at the recorded path (relative to the working directory in old records), then at its path
    relative to the model directory, since both may have moved together.
    """
    if origin.name in (f"./{BASE}", f"./{REFERENCE}"):  # published with the model
        return origin.model_copy(update={"name": str(directory / origin.name)})
    places = [Path(origin.name), directory / (origin.relative or origin.name), directory.parent / origin.name]
    found = next((place for place in places if _contains_model(place)), None)
    return origin if found is None else origin.model_copy(update={"name": str(found)})


def parse_ref(place: str) -> ModelRef:
    """Parse a model name from the user: a folder, or a hub id with an optional @revision."""
    hub_id, _, revision = (place, "", "") if os.path.exists(place) else place.partition("@")
    return ModelRef(name=hub_id, revision=revision or None)


def check_exists(role: str, origin: ModelRef, model: str) -> None:
    """Check that a base or reference exists before anything is loaded.

    Args:
        role: base or reference.
        model: the model that needs it, for the message.

    Raises:
        RmkitError: if it is missing, with the option that gives its place.
    """
    if _contains_model(Path(origin.name)):
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
        f"Put it back, or give its new place: --{role} MODEL ({role}=MODEL in Python).",
    )


def verify_origin(role: str, recorded: ModelRef | None, used: ModelRef, model: str) -> list[str]:
    """Compare a base or reference with the one used in training; returns a note if they cannot be compared.

    Raises:
        RmkitError: if it differs, with the names of the changed files.
    """
    if recorded is None or (recorded.files is None and not _COMMIT.fullmatch(recorded.revision or "")):
        return []  # saved by an rmkit that recorded no checksums
    folder, files = Path(used.name), recorded.files
    if is_local(folder) != (files is not None):
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
            f"Restore it, give its place (--{role} MODEL; {role}=MODEL in Python), or skip the check: {_NO_VERIFY}.",
        )
    return []


def verify_tokenizer(recorded: Mapping[str, str] | None, model: str) -> None:
    """Compare the tokenizer's files in a model directory with those of training.

    Raises:
        RmkitError: if they differ, with their names.
    """
    folder = Path(model)
    if recorded is None or not os.path.isdir(folder):
        return
    changed = on_main_process(lambda: changed_files(recorded, tokenizer_digests(folder)))
    if changed:
        raise RmkitError(
            f"The tokenizer in {model} is not the one that the model was trained with. Changed: {', '.join(changed)}.",
            f"Restore these files, or skip the check: {_NO_VERIFY}.",
        )


def _contains_model(folder: Path) -> bool:
    # os.path accepts any text, even one too long for a path.
    return any(os.path.isfile(folder / name) for name in CONFIGS) or gguf_file(folder) is not None
