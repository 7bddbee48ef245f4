"""GGUF files (llama.cpp's format) as base models: dequantized once by transformers' reader, into a plain model folder.

Wherever a folder is given, so can be a GGUF file, or a folder whose only weights are one: `plain_folder` is the folder
that is loaded in its place. It is kept in `rmkit_cache()` under the sha256 of the file and holds float32 weights, since
a quantized weight is a half-precision scale times an integer, whose product half precision would round.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from rmkit.errors import RmkitError
from rmkit.files import replacing, rmkit_cache, sha256_of_file
from rmkit.hub.publication import TOKENIZER_FILES
from rmkit.library_errors import library_errors
from rmkit.processes import zero3_disabled

FORMAT = 1
"""Part of every cache name: raise it when a change to this file changes the folder of the same GGUF file."""

_OTHER_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_config.json")
_FETCH = "Fetch the file again, or give the model as a folder of safetensors."


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that `name` stands for: the file itself, or the one in a folder without other weights; else None.

    Raises:
        RmkitError: if such a folder holds several.
    """
    path = Path(name)
    if os.path.isfile(path):
        return path if path.suffix.lower() == ".gguf" else None
    if not os.path.isdir(path) or any((path / other).is_file() for other in _OTHER_WEIGHTS):
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) > 1:
        raise RmkitError(f"{name} contains {len(files)} GGUF files.", f"Name one of them, such as {files[0]}.")
    return files[0] if files else None


def is_local(name: str | Path) -> bool:
    """Whether `name` is on this machine: a folder or a GGUF file, and not a hub id."""
    return os.path.isdir(name) or gguf_file(name) is not None


def plain_folder(name: str) -> str:
    """The folder to load: `name`, or the dequantized form of the GGUF file that it stands for.

    The tokenizer is the one in the file, unless `name` is a folder with a tokenizer of its own. Processes that need the
    same file at the same time wait for the one that dequantizes it.

    Raises:
        RmkitError: if the file or the package gguf is missing, or the file is damaged, a part of a split file, of an
            architecture that transformers does not read, or lacks weights.
    """
    file = gguf_file(name)
    if file is None:
        if name.lower().endswith(".gguf") and not os.path.exists(name):
            raise RmkitError(f"There is no file {name}.", "Give the path of a GGUF file on this machine.")
        return name
    own = sorted(path for path in Path(name).iterdir() if _is_tokenizer_file(path)) if os.path.isdir(name) else []
    content = [sha256_of_file(file), *([path.name, sha256_of_file(path)] for path in own)]
    digest = hashlib.sha256(json.dumps([FORMAT, transformers.__version__, content]).encode()).hexdigest()
    folder = rmkit_cache() / "gguf" / digest
    if not folder.is_dir():
        _refuse_unreadable(file)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f".{digest}.lock"):
                if not folder.is_dir():
                    for left in folder.parent.glob(f".{digest}.*/"):  # by a process that was killed
                        shutil.rmtree(left, ignore_errors=True)
                    _dequantize(file, own, folder)
        except (OSError, SafetensorError) as error:
            raise RmkitError(
                f"{file} cannot be dequantized into {folder.parent}: {error}.",
                "Make room there, or set RMKIT_CACHE to another folder.",
            ) from None
    return str(folder)


def _is_tokenizer_file(path: Path) -> bool:
    return path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in TOKENIZER_FILES)


def _refuse_unreadable(file: Path) -> None:
    if find_spec("gguf") is None:
        raise RmkitError(
            f"{file} needs the package gguf, which is not installed.", 'Install it with `pip install "rmkit[gguf]"`.'
        )
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", file.name):
        raise RmkitError(
            f"{file} is one part of a split GGUF file.", "Merge the parts with `llama-gguf-split --merge FIRST OUTPUT`."
        )


def _dequantize(file: Path, own_tokenizer: list[Path], folder: Path) -> None:
    """Write a model folder of float32 weights, with the tokenizer."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        source = temporary.with_name("source")  # the file alone: transformers would also read what lies beside it
        source.mkdir()
        (source / "model.gguf").symlink_to(file.resolve())
        for path in own_tokenizer:
            (source / path.name).symlink_to(path.resolve())
        own_vocabulary = (source / "tokenizer.json").exists()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # missing and unexpected weights are checked below
        try:
            with library_errors(f"{file} cannot be read as a GGUF model", _FETCH), zero3_disabled():
                model, report = AutoModelForCausalLM.from_pretrained(
                    source,
                    gguf_file="model.gguf",
                    dtype=torch.float32,
                    quantization_config=GgufConfig(dequantize=True),
                    output_loading_info=True,
                )
                tokenizer = None if own_vocabulary else AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
        except RmkitError as error:  # the library names the link
            raise RmkitError(error.cause.replace(str(source / "model.gguf"), str(file)), error.remedy) from None
        finally:
            logging.set_verbosity(verbosity)
        _refuse_incomplete(file, report)
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        else:
            for path in own_tokenizer:
                shutil.copyfile(path, temporary / path.name)


def _refuse_incomplete(file: Path, report: dict) -> None:
    """transformers draws missing weights at random."""
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[problem]:
            first = min(map(str, report[problem]))
            raise RmkitError(f"{file} does not fit its architecture: {problem.replace('_', ' ')}, {first}.", _FETCH)
