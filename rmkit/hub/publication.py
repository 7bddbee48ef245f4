"""Which files of a run are published, and what changes in them so that other machines can use them. No network.

A publication holds the allowlisted files of the model directory (weights in safetensors, configuration, tokenizer)
without local paths, and the recipe. A base or reference that was a local folder is replaced by its hub id, or uploaded
into a folder of its own, which reward_model.json then names: `./base`, `./reference`.
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
"""Folders of a publication that hold another model."""
UPLOAD = "upload"
"""The value of `hub.base` that uploads a local base."""

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
    "additional_chat_templates/*.jinja",
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
"""Patterns of the files that rmkit publishes; it leaves any other file of a repository alone."""

_SMALL = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json")
LOCAL_KEYS = ("_name_or_path", "name_or_path", "local_files_only", "is_local")  # they describe this machine

Files = dict[str, Path | bytes]
"""Path in the repository -> a file on disk, or its content."""


@dataclass(frozen=True)
class PublicModel:
    """A base or reference, and where others get it.

    Attributes:
        name: a hub id, `./base`, `./reference`, or None if others cannot get it and do not need it.
        revision: revision of the hub id.
        folder: the local folder to upload.
        description: what the card calls it if it has no hub id.
    """

    name: str | None
    revision: str | None = None
    folder: Path | None = None
    description: str = ""

    @property
    def hub_id(self) -> str | None:
        """The hub id, if it is on the Hub."""
        return self.name if self.folder is None else None


@dataclass(frozen=True)
class Publication:
    """The files of a publication except its card, and what the card is written from.

    Attributes:
        record: the content of the published reward_model.json.
        recipe: the published recipe.
        left_out: files of the model directory that are not published.
    """

    files: Files
    record: dict[str, Any]
    recipe: Recipe
    base: PublicModel
    reference: PublicModel | None
    left_out: list[str]


def build_publication(model: Path, content: Mapping[str, Any], hub: Hub) -> Publication:
    """The publication of a model directory; `content` is that of run.json.

    Raises:
        RmkitError: if the directory holds no model; see also `public_origins`.
    """
    try:
        record = json.loads((model / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RmkitError(f"No model in {model}: {error}.", "Give a finished run's directory.") from None
    for origin in filter(None, (record["base"], record.get("reference"))):
        relative = model / (origin.get("relative") or ".")  # the run and this model may have moved together
        if _is_local(origin["name"]) and not Path(origin["name"]).exists() and (relative / "config.json").is_file():
            origin["name"] = str(relative)
    base, reference = public_origins(record, content["recipe"], hub)
    record["base"] = None if base.name is None else _public_record(base, record["base"])
    if reference is not None:
        record["reward_model"]["reference"] = reference.name
        record["reference"] = _public_record(reference, record.get("reference") or {})
    recipe = portable_recipe(content["recipe"], base, reference)

    files = _model_files(model, base)
    published = {RECORD, *(name.split("/")[0] for name in files)}
    left_out = sorted(file.name for file in model.iterdir() if file.name not in published)
    for other in (base, reference):
        if other is not None and other.folder is not None and other.name is not None:
            files |= {f"{other.name[2:]}/{name}": file for name, file in _model_files(other.folder).items()}
    files |= {RECORD: _json(record), RECIPE: recipe.to_yaml().encode()}
    return Publication(files, record, recipe, base, reference, left_out)


def public_origins(
    record: Mapping[str, Any], recipe: Mapping[str, Any], hub: Hub
) -> tuple[PublicModel, PublicModel | None]:
    """Where others get the base and, if that is another model, the reference.

    Args:
        record: the content of reward_model.json.
        recipe: the content of the recipe.

    Raises:
        RmkitError: if the model needs a local folder, and `hub.base` does not say what to do about it.
    """
    base, settings, other = record["base"], record["reward_model"], record.get("reference") or {}
    reference = other.get("name") or settings.get("reference") or "none"
    needed = record["adapter"] or reference == "base"
    built = recipe["base"]["build"] is not None
    if not _is_local(base["name"]):
        public_base = PublicModel(base["name"], base["revision"])
    elif hub.base not in (None, UPLOAD):
        hub_id, _, revision = str(hub.base).partition("@")
        public_base = PublicModel(hub_id, revision or None)
    elif needed:
        public_base = _uploaded(base["name"], BASE, hub, built)
    else:
        public_base = PublicModel(None, description=_description(base["name"], built))
    if reference in ("base", "none"):
        return public_base, None
    if not _is_local(reference):
        return public_base, PublicModel(reference, other.get("revision") or settings.get("reference_revision"))
    return public_base, _uploaded(reference, REFERENCE, hub, False)


def _public_record(origin: PublicModel, before: Mapping[str, Any]) -> dict[str, Any]:
    """A base or reference in the published record; an uploaded folder keeps its recorded digests."""
    recorded: dict[str, Any] = {"name": origin.name, "revision": origin.revision}
    return recorded | {"files": before.get("files")} if origin.folder is not None else recorded


def _is_local(name: str) -> bool:
    return Path(name).expanduser().exists() or Path(name).is_absolute() or name.startswith((".", "~"))


def _description(name: str, built: bool) -> str:
    return "a small language model built by rmkit" if built else f"a local folder, {Path(name).name}"


def _uploaded(name: str, role: str, hub: Hub, built: bool) -> PublicModel:
    folder = Path(name).expanduser()
    if not built and hub.base != UPLOAD:  # other people's weights are published on request only
        hub_id = "its hub id, or " if role == BASE else ""
        raise RmkitError(
            f"The {role} {name} is a local folder, and the model cannot be used without it.",
            f"Give --base (hub.base in a recipe): {hub_id}`{UPLOAD}` to upload it to {hub.repo_id} too.",
        )
    if folder.suffix == ".gguf" or (any(folder.glob("*.gguf")) and not (folder / "config.json").is_file()):
        raise RmkitError(
            f"The {role} {name} is a GGUF file, which is not uploaded.",
            "Give the hub id of the model that it was made from as --base (hub.base).",
        )
    if (folder / "adapter_config.json").is_file():
        raise RmkitError(
            f"The {role} {name} is an adapter, and its own base would be missing on other machines.",
            "Push it to the Hub first, and give its hub id as --base (hub.base).",
        )
    if not (folder / "config.json").is_file():
        raise RmkitError(f"The {role} {name} no longer exists.", "Restore it, or give its hub id as --base (hub.base).")
    return PublicModel(f"./{role}", folder=folder, description=_description(name, built))


def _model_files(folder: Path, base: PublicModel | None = None) -> Files:
    """The files of a model directory that are published; `base` is the base of an adapter."""
    files: Files = {}
    for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")]):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and any(fnmatchcase(name, pattern) for pattern in _MODEL_FILES):
            files[name] = path
    for name in set(files) & set(_SMALL):
        before = json.loads((folder / name).read_text(encoding="utf-8"))
        after = {key: value for key, value in before.items() if key not in LOCAL_KEYS}
        if base is not None and "base_model_name_or_path" in after:
            after |= {"base_model_name_or_path": base.hub_id, "revision": base.revision}
        if after != before:
            files[name] = _json(after)
    return files


def portable_recipe(recipe: Mapping[str, Any], base: PublicModel, reference: PublicModel | None) -> Recipe:
    """The recipe without its hub section; paths that exist on this machine only are cut to their last part."""
    written = copy.deepcopy(dict(recipe))
    model, settings = written["base"], written["reward_model"]
    portable = {key: _portable(value) for key, value in written.items() if key != "reward_model"}
    if model["name"] is not None:
        portable["base"] |= {"name": base.hub_id or _portable(model["name"]), "revision": base.revision}
    if reference is not None:
        settings["reference"] = reference.hub_id or _portable(settings["reference"])
    order = {key: portable.get(key, settings) for key in written}
    return validate(Recipe, order | {"hub": None}, "run.json: recipe")


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "../"))):
        return Path(value).name or "."
    return value


def refuse_secrets(files: Files, recipe: Mapping[str, Any], secrets: Iterable[str | None]) -> None:
    """Check the text files of a publication just before the upload.

    Raises:
        RmkitError: if one of them contains one of `secrets`, or an absolute path of the recipe.
    """
    paths = (recipe["base"]["name"], recipe["data"]["root"], recipe["output_dir"])
    absolute = [str(path) for path in paths if path and len(Path(path).parts) > 2 and Path(path).is_absolute()]
    for name, file in files.items():
        if Path(name).name not in (*_SMALL, RECORD, RECIPE, CARD):
            continue
        text = (file if isinstance(file, bytes) else file.read_bytes()).decode("utf-8", "replace")
        for secret in filter(None, [*absolute, *secrets]):
            if secret in text:
                leak = "a local path" if secret in absolute else "your access token"
                raise RmkitError(f"{name} would publish {leak}.", "Remove it from the recipe's texts, and train again.")


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
