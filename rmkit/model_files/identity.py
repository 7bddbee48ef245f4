"""Identify models: sha256 of the files that are loaded from a folder, or the commit of a hub repository.

A run records them for its base, its reference and its tokenizer, and loading compares them. JSON files are hashed by
their content, without keys that are irrelevant to the model, so that a published copy is the same model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from rmkit.errors import RmkitError
from rmkit.files import sha256_of_file
from rmkit.hub.publication import LOCAL_KEYS, TOKENIZER_FILES
from rmkit.model_files.gguf import gguf_file

Digests = dict[str, str]
"""sha256 of each file, by name."""

CONFIGS = ("config.json", "adapter_config.json")
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_INDEX = "model.safetensors.index.json"
_IGNORED_KEYS = (
    *LOCAL_KEYS,
    *("transformers_version", "padding", "padding_side", "truncation", "truncation_side"),
    *("base_model_name_or_path", "revision"),  # of an adapter: its base is identified by its content, not its path
)

Result = TypeVar("Result")


def model_digests(folder: Path) -> Digests:
    """Hash the files that a model is loaded from: configuration, and weights in one file or as listed in an index.

    Of a GGUF file, or a folder that stands for one, the digest of that file is all.
    """
    file = gguf_file(folder)
    if file is not None:
        return {"model.gguf": sha256_of_file(file)}
    names = {*CONFIGS, *_WEIGHTS}
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        names |= {Path(str(name)).name for name in index["weight_map"].values()}
    return {name: _digest(folder / name) for name in sorted(names) if (folder / name).is_file()}


def tokenizer_digests(folder: Path) -> Digests:
    """Hash the files of a tokenizer, including its chat template."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: _digest(path) for path in paths if any(fnmatchcase(path.name, name) for name in TOKENIZER_FILES)}


def saved_tokenizer_digests(tokenizer: PreTrainedTokenizerBase) -> Digests:
    """Hash the files that saving a tokenizer would write."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return tokenizer_digests(Path(folder))


def changed_files(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The names of files that are missing, new or changed."""
    return sorted(name for name in {*recorded, *found} if recorded.get(name) != found.get(name))


def hub_commit(name: str, revision: str | None = None) -> str:
    """The commit that a branch or tag of a hub repository points to.

    Raises:
        OSError: if there is no such model, neither cached nor on the Hub.
    """
    for config in CONFIGS:
        found = cached_file(name, config, revision=revision, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return Path(found).parent.name  # .../snapshots/<commit>/config.json
    raise OSError(f"{name} has no {CONFIGS[0]}.")


def on_main_process(compute: Callable[[], Result]) -> Result:
    """Call `compute` on the main process only; all processes return its result or raise its `RmkitError`."""
    state = PartialState()
    found: list[Result | RmkitError | None] = [None]
    if state.is_main_process:
        try:
            found = [compute()]
        except RmkitError as error:
            found = [error]
    if state.num_processes > 1:
        broadcast_object_list(found)
    (result,) = found
    if isinstance(result, RmkitError):
        raise result
    return result  # type: ignore[return-value]


def _digest(path: Path) -> str:
    if path.suffix != ".json":
        return sha256_of_file(path)
    content = path.read_bytes()
    with contextlib.suppress(ValueError):
        values = json.loads(content)
        if isinstance(values, dict):
            values = {key: value for key, value in values.items() if key not in _IGNORED_KEYS}
        content = json.dumps(values, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()
