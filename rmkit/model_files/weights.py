"""Check the weight files of a model before and after loading.

The headers of safetensors files contain names and shapes. transformers first loads these on the meta device: its report
names weights that are missing, unexpected or of the wrong shape before any memory is allocated, and also under ZeRO-3,
where the report of the real loading is empty.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file, logging

from rmkit.errors import RmkitError
from rmkit.library_errors import library_errors, read_json
from rmkit.model_files.gguf import gguf_file, plain_folder
from rmkit.processes import zero3_disabled

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "score.weight"

_FETCH = "Fetch or save the model again."
_WEIGHTS = (".safetensors", ".gguf")
_MAX_COUNT = 100_000
"""No model has this many layers, experts or labels."""
_OLD_BUFFERS = r"\.(attn|attention)\.masked_bias$"
_SHARDS_OF_A_MESH = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a model on disk.

    Attributes:
        name: the model's name, for messages.
        files: the files to load: model.safetensors, or those that the index names.
        place: weight -> the file that contains it.
        shapes: weight -> shape.
    """

    name: str
    files: list[Path]
    place: dict[str, Path]
    shapes: dict[str, list[int]]

    def read(self, weight: str) -> Tensor:
        """Read a weight."""
        with (
            library_errors(f"{self.place[weight]} cannot be read", _FETCH),
            safe_open(self.place[weight], framework="pt") as tensors,
        ):
            return torch.as_tensor(tensors.get_tensor(weight))


def weight_files(name: str, revision: str | None = None) -> WeightFiles:
    """Find the weight files of a folder or hub repository and read their headers.

    Raises:
        RmkitError: if there are none, one is damaged, or index and files disagree.
    """
    if os.path.isdir(name) and any(map(_SHARDS_OF_A_MESH.match, os.listdir(name))):
        raise RmkitError(f"{name} holds the shards of a device mesh.", "Gather them into model.safetensors first.")
    single = model_file(name, SAFETENSORS, revision)
    if single is not None:
        headers = {single: _read_header(single)}
    else:
        index = model_file(name, INDEX, revision)
        if index is None:
            raise RmkitError(
                f"No model could be loaded from {name}: it has neither {SAFETENSORS} nor {INDEX}.",
                "Give a folder with config.json and *.safetensors, or a hub id that this machine can reach.",
            )
        headers = _read_indexed_headers(name, index, revision)
    place = {weight: file for file, header in headers.items() for weight in header}
    shapes = {weight: shape for header in headers.values() for weight, shape in header.items()}
    return WeightFiles(name, list(headers), place, shapes)


def folder_notes(name: str, revision: str | None = None) -> list[str]:
    """Notes on surprises in a local folder: weight files that are not loaded, and links to other places.

    Of a GGUF file, where its dequantized form is.
    """
    if gguf_file(name) is not None:
        return [f"{name} is dequantized, to float32, in {plain_folder(name)}."]
    if not os.path.isdir(name) or not ((Path(name) / SAFETENSORS).exists() or (Path(name) / INDEX).exists()):
        return []
    folder, used = Path(name), {file.name for file in weight_files(name, revision).files}
    stray = sorted(file.name for file in folder.iterdir() if file.suffix in _WEIGHTS and file.name not in used)
    notes = [f"{name}: {', '.join(stray)} not used: the weights are in {', '.join(sorted(used))}."] if stray else []
    if "snapshots" not in folder.absolute().parts:  # the Hub's cache consists of links
        links = [file.name for file in sorted(folder.iterdir()) if file.is_symlink() and not _is_inside(file, folder)]
        notes += [f"{name}: {link} is a link to {os.path.realpath(folder / link)}." for link in links]
    return notes


def check_config(name: str, revision: str | None = None) -> None:
    """Refuse entries of config.json that do not describe a loadable model, and weight files with other names.

    Raises:
        RmkitError: names the entry.
    """
    file = model_file(name, "config.json", revision)
    if file is None:
        return  # transformers reports it
    config = read_json(file, _FETCH)
    for key, value in _iter_numbers(config):
        if re.match(r"num_|n_(layer|head)|encoder_layers|decoder_layers", key) and not 0 <= value <= _MAX_COUNT:
            raise RmkitError(f"{name}: {key} is {value} in config.json.", _FETCH)
    architectures = config.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise RmkitError(f"{name}: architectures is {architectures!r} in config.json, not a list of names.", _FETCH)
    explicit = config.get("transformers_weights")
    if explicit is not None:
        raise RmkitError(
            f"{name}: config.json says that the weights are in {explicit!r} (transformers_weights).",
            f"Remove transformers_weights from config.json, and name the file {SAFETENSORS}.",
        )


def check_weights(auto_class: Any, config: PretrainedConfig, files: WeightFiles, trust_remote_code: bool) -> None:
    """Refuse weights that do not fit a model of this class and configuration exactly; reads only headers.

    Raises:
        RmkitError: see `check_report`; or if a weight differs from another one that config.json ties it to.
    """
    text_config, most = (
        config.get_text_config(),
        max((max(shape, default=1) for shape in files.shapes.values()), default=0),
    )
    for key, limit in (("num_hidden_layers", len(files.shapes)), ("hidden_size", most), ("head_dim", most)):
        size = getattr(text_config, key, None)
        if isinstance(size, int) and size > limit:
            raise RmkitError(f"{files.name}: {key} is {size} in config.json, which its weights do not have.", _FETCH)
    with library_errors(f"No model could be loaded from {files.name}", _FETCH), zero3_disabled(), no_progress_bar():
        with torch.device("meta"):
            architecture = type(auto_class.from_config(config, trust_remote_code=trust_remote_code))
            tensors = {weight: torch.empty(shape) for weight, shape in files.shapes.items()}
        model, report = architecture.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # for the report to name them
            output_loading_info=True,
        )
    check_report(auto_class, model, report, files.name)
    _check_names(model, files)
    _check_tied(model, files)


def check_report(auto_class: Any, model: PreTrainedModel, report: Mapping[str, Any], name: str) -> None:
    """Refuse all mismatches that transformers reports for a model of `auto_class`, except for a missing reward head.

    If the head is missing, the weights are a language model's, and an unused unembedding is accepted too.

    Raises:
        RmkitError: names a weight that is missing, unexpected, or of the wrong shape.
    """
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    classifier, causal = auto_class is AutoModelForSequenceClassification, _causal_class(model.config)
    if classifier:  # old buffers, heads for multi-token prediction
        ignored = [_OLD_BUFFERS, *(getattr(causal, "_keys_to_ignore_on_load_unexpected", None) or [])]
        unexpected = {weight for weight in unexpected if not any(re.search(pattern, weight) for pattern in ignored)}
    if classifier and HEAD in missing:
        missing.remove(HEAD)
        unembedding = {"lm_head", "embed_out"}
        unembedding |= {weight.rpartition(".")[0] for weight in getattr(causal, "_tied_weights_keys", None) or {}}
        unexpected = {weight for weight in unexpected if weight.rpartition(".")[0] not in unembedding}
    for weight, found, expected in sorted(report["mismatched_keys"]):
        raise RmkitError(
            f"{name}: {weight} has shape {list(found)}, but config.json requires {list(expected)}.", _FETCH
        )
    if missing:
        raise RmkitError(f"{name} lacks weights: {summarize(missing)}.", _FETCH)
    if unexpected:
        raise RmkitError(
            f"{name} has weights that have no place in {type(model).__name__}: {summarize(unexpected)}.",
            _remedy(unexpected),
        )


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse NaN and infinite weights in a loaded model, which ZeRO-3 may have partitioned.

    Raises:
        RmkitError: names the first such weight, on every process.
    """
    tensors = list(model.state_dict(keep_vars=True).items())
    bad = next((number for number, (_, tensor) in enumerate(tensors) if not _is_finite(tensor)), len(tensors))
    if any(hasattr(tensor, "ds_tensor") for _, tensor in tensors):  # each process has seen its partitions only
        first = torch.tensor(bad, device=torch.accelerator.current_accelerator() or torch.device("cpu"))
        torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
        bad = int(first)
    if bad < len(tensors):
        raise not_finite(name, tensors[bad][0])


def not_finite(name: str, weight: str) -> RmkitError:
    """The error for a weight with NaN or infinite entries."""
    return RmkitError(f"{name}: the weight {weight} has entries that are NaN or infinite.", _FETCH)


def _is_finite(tensor: Any) -> bool:
    part = tensor
    if hasattr(tensor, "ds_tensor"):  # entries after the last one are padding
        part = tensor.ds_tensor.flatten()
        part = part[: max(0, tensor.ds_numel - torch.distributed.get_rank() * part.numel())]
    if part.numel() == 0 or not part.is_floating_point():
        return True
    low, high = torch.aminmax(part.detach())  # a single pass without a copy; NaN propagates
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _check_names(model: PreTrainedModel, files: WeightFiles) -> None:
    """Refuse a weight saved both with and without the base model's prefix: transformers silently loads one of them."""
    prefix, own = f"{model.base_model_prefix}.", model.state_dict().keys()
    for weight in sorted(files.shapes):
        short = weight.removeprefix(prefix)
        if short != weight and short in files.shapes and not {short, weight} <= own:
            raise RmkitError(
                f"{files.name} has two weights for the same place in the model: {weight} and {short}.",
                "Save the model again without one of them.",
            )


def _check_tied(model: PreTrainedModel, files: WeightFiles) -> None:
    """Refuse tied weights that differ in the files: transformers would leave them untied."""
    for one, other in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if {one, other} <= files.shapes.keys() and not torch.equal(files.read(one), files.read(other)):
            for weight in (one, other):  # NaN differs from itself
                if not _is_finite(files.read(weight)):
                    raise not_finite(files.name, weight)
            raise RmkitError(
                f"{files.name}: config.json ties {one} to {other}, but they differ.",
                "Set tie_word_embeddings in config.json to false, or save the model again.",
            )


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hide transformers' progress bar for loading weights, for checks and models without weights."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _remedy(unexpected: Iterable[str]) -> str:
    if any(".lora_" in weight or ".base_layer." in weight for weight in unexpected):
        return "Merge the adapter into the model (PEFT's merge_and_unload) and save it again, or give its own folder."
    if HEAD in unexpected:
        return "It is a classifier: score it with --type explicit, or give the language model that it was trained from."
    return "Save the model again without them, or with the matching config.json."


def _causal_class(config: PretrainedConfig) -> Any:
    """transformers' causal model class for a configuration; None if there is none."""
    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


def model_file(name: str, filename: str, revision: str | None) -> Path | None:
    """A file of a folder or hub repository, downloaded if necessary; None if it does not exist.

    Of a GGUF file it is one of its dequantized form.
    """
    name = plain_folder(name)
    try:
        found = cached_file(name, filename, revision=revision)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def _read_header(file: Path) -> dict[str, list[int]]:
    with library_errors(f"{file} cannot be read", _FETCH), safe_open(file, framework="pt") as tensors:
        return {weight: list(tensors.get_slice(weight).get_shape()) for weight in tensors.keys()}  # noqa: SIM118


def _read_indexed_headers(name: str, index: Path, revision: str | None) -> dict[Path, dict[str, list[int]]]:
    weight_map = read_json(index, _FETCH).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(filename, str) for filename in weight_map.values()):
        raise RmkitError(f"{index} has no weight_map from weights to files.", _FETCH)
    for filename in set(weight_map.values()):
        path = PurePosixPath(filename)
        if path.is_absolute() or ".." in path.parts or not filename.endswith(".safetensors") or "\\" in filename:
            raise RmkitError(f"{index} names {filename!r}, which is not a safetensors file of this model.", _FETCH)
    headers: dict[Path, dict[str, list[int]]] = {}
    for filename in sorted(set(weight_map.values())):
        file = model_file(name, filename, revision)
        if file is None:
            raise RmkitError(f"{name} lacks {filename}, which its index names.", _FETCH)
        header = headers[file] = _read_header(file)
        indexed = {weight for weight, place in weight_map.items() if place == filename}
        if header.keys() != indexed:
            weight = min(header.keys() ^ indexed)
            raise RmkitError(f"{index} and {filename} disagree on the weight {weight}.", _FETCH)
    return headers


def _iter_numbers(content: Any) -> Iterator[tuple[str, int]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, int) and not isinstance(value, bool):
                yield str(key), value
            else:
                yield from _iter_numbers(value)


def summarize(names: Iterable[str]) -> str:
    """The first name and the number of others."""
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _is_inside(file: Path, folder: Path) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
