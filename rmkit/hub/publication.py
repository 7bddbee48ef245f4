"""What of a run is published, and how it is made to mean the same on other machines. No network, no torch.

A publication holds the files of the model directory that are on a list (weights in safetensors, configuration,
tokenizer) without local paths, and the recipe. A base or reference that was a local folder is named by its hub id, or
comes along in a folder of its own, and reward_model.json names that: `./base`, `./reference`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rmkit.config.recipe import Hub, Recipe
from rmkit.config.strict_yaml import validate
from rmkit.errors import RmkitError

RECORD = "reward_model.json"
CARD, RECIPE = "README.md", "recipe.yaml"
BASE, REFERENCE = "base", "reference"
"""The folders of a publication that hold another model."""
BESIDE = "beside"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
)
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    *TOKENIZER_FILES,
)
PUBLISHED = (
    *_MODEL_FILES,
    *(f"{folder}/{pattern}" for folder in (BASE, REFERENCE) for pattern in _MODEL_FILES),
    *(RECORD, CARD, RECIPE),
)
"""Patterns of what a publication may hold; anything else in a repository is not rmkit's."""

_SMALL = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json")
LOCAL_KEYS = ("_name_or_path", "name_or_path", "local_files_only", "is_local")  # what they say of this machine

Files = dict[str, Path | bytes]
"""By path in the repository: a file on disk, or its content."""


@dataclass(frozen=True)
class PublicModel:
    """A base or reference as others find it.

    Attributes:
        name: a hub id, `./base`, `./reference`, or None where others cannot have it and do not need it.
        revision: of the hub id.
        folder: what is uploaded along.
        was: how it is spoken of where it has no name.
    """

    name: str | None
    revision: str | None = None
    folder: Path | None = None
    was: str = ""

    @property
    def hub_id(self) -> str | None:
        return self.name if self.folder is None else None


@dataclass(frozen=True)
class Publication:
    """The files of a publication, and what its card speaks of.

    Attributes:
        record: the content of its reward_model.json.
        recipe: its recipe.
        left_out: files of the model directory that are not published.
    """

    files: Files
    record: dict[str, Any]
    recipe: Recipe
    base: PublicModel
    reference: PublicModel | None
    left_out: list[str]


def publication(model: Path, content: Mapping[str, Any], hub: Hub) -> Publication:
    """What to publish of a model directory, the card excepted; `content` is that of run.json.

    Raises:
        RmkitError: if the directory holds no model; see also `origins`.
    """
    try:
        record = json.loads((model / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RmkitError(f"{model} holds no model: {error}.", "Give a finished run's directory.") from None
    for origin in filter(None, (record["base"], record.get("reference"))):
        beside = model / (origin.get("relative") or ".")  # both have moved together
        if _is_local(origin["name"]) and not Path(origin["name"]).exists() and (beside / "config.json").is_file():
            origin["name"] = str(beside)
    base, reference = origins(record, content["recipe"], hub)
    record["base"] = None if base.name is None else _as_recorded(base, record["base"])
    if reference is not None:
        record["reward_model"]["reference"] = reference.name
        record["reference"] = _as_recorded(reference, record.get("reference") or {})
    recipe = portable_recipe(content["recipe"], base, reference)

    files = _model_files(model, base)
    left_out = sorted(each.name for each in model.iterdir() if each.name not in {*files, RECORD})
    for other in (base, reference):
        if other is not None and other.folder is not None and other.name is not None:
            files |= {f"{other.name[2:]}/{name}": file for name, file in _model_files(other.folder).items()}
    files |= {RECORD: _json(record), RECIPE: recipe.to_yaml().encode()}
    return Publication(files, record, recipe, base, reference, left_out)


def origins(record: Mapping[str, Any], recipe: Mapping[str, Any], hub: Hub) -> tuple[PublicModel, PublicModel | None]:
    """Where others find the base and, if that is another model, the reference.

    Args:
        record: the content of reward_model.json.
        recipe: that of the recipe.

    Raises:
        RmkitError: if the model is no use without a folder of this machine, and `hub.base` does not say what to do.
    """
    base, settings, other = record["base"], record["reward_model"], record.get("reference") or {}
    reference = other.get("name") or settings.get("reference") or "none"
    needed = record["adapter"] or reference == "base"
    built = recipe["base"]["build"] is not None
    if not _is_local(base["name"]):
        found = PublicModel(base["name"], base["revision"])
    elif hub.base not in (None, BESIDE):
        hub_id, _, revision = str(hub.base).partition("@")
        found = PublicModel(hub_id, revision or None)
    elif needed:
        found = _brought_along(base["name"], BASE, hub, built)
    else:
        found = PublicModel(None, was=_spoken(base["name"], built))
    if reference in ("base", "none"):
        return found, None
    if not _is_local(reference):
        return found, PublicModel(reference, other.get("revision") or settings.get("reference_revision"))
    return found, _brought_along(reference, REFERENCE, hub, False)


def _as_recorded(found: PublicModel, before: Mapping[str, Any]) -> dict[str, Any]:
    """A base or reference in a publication's record; of a folder that comes along, the digests stay what they were."""
    recorded: dict[str, Any] = {"name": found.name, "revision": found.revision}
    return recorded | {"files": before.get("files")} if found.folder is not None else recorded


def _is_local(name: str) -> bool:
    return Path(name).expanduser().exists() or Path(name).is_absolute() or name.startswith((".", "~"))


def _spoken(name: str, built: bool) -> str:
    return "a small language model that rmkit built" if built else f"a local folder, {Path(name).name}"


def _brought_along(name: str, role: str, hub: Hub, built: bool) -> PublicModel:
    folder = Path(name).expanduser()
    if not built and hub.base != BESIDE:  # others' weights are republished only where that is asked for
        hub_id = "its hub id, or " if role == BASE else ""
        raise RmkitError(
            f"The {role} {name} is a folder of this machine, and the model cannot be used without it.",
            f"Give --base (hub.base in a recipe): {hub_id}`{BESIDE}` to upload it into {hub.repo_id} too.",
        )
    if (folder / "adapter_config.json").is_file():
        raise RmkitError(
            f"The {role} {name} is an adapter, whose own base would be missing elsewhere.",
            "Push it to the Hub first, and give its hub id as --base (hub.base).",
        )
    if not (folder / "config.json").is_file():
        raise RmkitError(f"The {role} {name} is gone.", "Put it back, or give its hub id as --base (hub.base).")
    return PublicModel(f"./{role}", folder=folder, was=_spoken(name, built))


def _model_files(folder: Path, base: PublicModel | None = None) -> Files:
    """The files of a model directory that are published; `base` is what adapters are for."""
    files: Files = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in _MODEL_FILES):
            files[path.name] = path
    for name in set(files) & set(_SMALL):
        before = json.loads((folder / name).read_text(encoding="utf-8"))
        after = {key: value for key, value in before.items() if key not in LOCAL_KEYS}
        if base is not None and "base_model_name_or_path" in after:
            after |= {"base_model_name_or_path": base.hub_id, "revision": base.revision}
        if after != before:
            files[name] = _json(after)
    return files


def portable_recipe(recipe: Mapping[str, Any], base: PublicModel, reference: PublicModel | None) -> Recipe:
    """The recipe with the last part of every path that only this machine has, and without its hub section."""
    told = copy.deepcopy(dict(recipe))
    model, settings = told["base"], told["reward_model"]
    portable = {key: _portable(value) for key, value in told.items() if key != "reward_model"}
    if model["name"] is not None:
        portable["base"] |= {"name": base.hub_id or _portable(model["name"]), "revision": base.revision}
    if reference is not None:
        settings["reference"] = reference.hub_id or _portable(settings["reference"])
    order = {key: portable.get(key, settings) for key in told}
    return validate(Recipe, order | {"hub": None}, "run.json: recipe")


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _portable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_portable(each) for each in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "../"))):
        return Path(value).name or "."
    return value


def refuse_secrets(files: Files, recipe: Mapping[str, Any], secrets: Iterable[str | None]) -> None:
    """The last look before an upload at what describes the model.

    Raises:
        RmkitError: if one of the files holds one of `secrets`, or a path of the recipe that only this machine has.
    """
    paths = (recipe["base"]["name"], recipe["data"]["root"], recipe["output_dir"])
    absolute = [str(each) for each in paths if each and len(Path(each).parts) > 2 and Path(each).is_absolute()]
    for name, file in files.items():
        if Path(name).name not in (*_SMALL, RECORD, RECIPE, CARD):
            continue
        text = (file if isinstance(file, bytes) else file.read_bytes()).decode("utf-8", "replace")
        for secret in filter(None, [*absolute, *secrets]):
            if secret in text:
                kind = "a path of this machine" if secret in absolute else "your access token"
                raise RmkitError(f"{name} would show {kind}.", "Take it out of the recipe's texts, and train again.")


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
