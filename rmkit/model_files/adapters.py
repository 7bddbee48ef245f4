"""Adapters as PEFT and TRL save them: a folder with adapter_config.json and adapter_model.safetensors.

To score an adapter, `attach` puts it on its base, with the reward head among its modules_to_save. An adapter that is
the base or reference of another model is merged into its own base (`merge`).
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import torch
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from rmkit.errors import RmkitError
from rmkit.hub.publication import RECORD
from rmkit.library_errors import library_errors, read_json
from rmkit.model_files.weights import HEAD, INDEX, SAFETENSORS, model_file, not_finite, summarize

CONFIG, WEIGHTS, TOKENIZER = "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"

_PREFIX = "base_model.model."
_SAVE = "Save the adapter again with PEFT's save_pretrained."
_MERGE = "Merge it into its base where it was trained (PEFT's merge_and_unload) and give the merged model."
_UNSUPPORTED = {PeftType.ADAPTION_PROMPT, PeftType.XLORA, PeftType.POLY}
"""Besides prompt learning: methods that change prompts or choose among experts, rather than a model's layers."""


@dataclass(frozen=True)
class Adapter:
    """An adapter and its base.

    Attributes:
        name: the folder or hub id that the user gave.
        folder: the folder of its files.
        config: PEFT's configuration.
        base: a folder or hub id, possibly of another adapter.
    """

    name: str
    folder: Path
    config: PeftConfig
    base: str
    base_revision: str | None

    def weights(self) -> dict[str, Tensor]:
        """Read all weights, by their names in the file.

        Raises:
            RmkitError: if there is no safetensors file, or a weight is not finite.
        """
        file = self.folder / WEIGHTS
        if not file.is_file():
            raise RmkitError(
                f"{self.name} has no {WEIGHTS}.",
                f"{_SAVE[:-1]} (adapter_model.bin is a pickle, which can run code; it is not read).",
            )
        with library_errors(f"{file} cannot be read", _SAVE):
            weights: dict[str, Tensor] = load_file(file)
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise not_finite(self.name, name)
        return weights

    @property
    def saves_head(self) -> bool:
        """Whether the reward head is among its weights."""
        return _PREFIX + HEAD in self.weights()


def find_adapter(name: str, revision: str | None = None, base: tuple[str, str | None] | None = None) -> Adapter | None:
    """Find the adapter in a folder or hub repository; None if it does not contain one.

    Args:
        base: name and revision of its base, overriding adapter_config.json.

    Raises:
        RmkitError: if its configuration is invalid, its base is not named or missing, or its method is unsupported.
    """
    file = model_file(name, CONFIG, revision)
    if file is None:
        return None
    if not os.path.isdir(name):
        model_file(name, WEIGHTS, revision)  # downloaded to the same folder
    folder = file.parent
    if (folder / SAFETENSORS).is_file() or (folder / INDEX).is_file():
        raise RmkitError(
            f"{name} contains both a whole model and an adapter.",
            f"Move {CONFIG} and {WEIGHTS} to a folder of their own.",
        )
    content = read_json(file, _SAVE)
    with (
        library_errors(f"{file} does not describe an adapter that PEFT supports", _SAVE),
        catch_warnings(action="ignore"),
    ):
        config = PeftConfig.from_pretrained(str(folder))
    _check_method(name, config)
    return Adapter(name, folder, config, *(base or _named_base(name, file, content)))


def _named_base(name: str, file: Path, content: dict[str, Any]) -> tuple[str, str | None]:
    """The base named in reward_model.json, where published adapters have it, else in adapter_config.json."""
    relative = None
    if (file.parent / RECORD).is_file():
        recorded = read_json(file.parent / RECORD, _SAVE).get("base")
        if isinstance(recorded, dict):
            content = {"base_model_name_or_path": recorded.get("name"), "revision": recorded.get("revision")}
            relative = recorded.get("relative")
    base, revision = content.get("base_model_name_or_path"), content.get("revision")
    edit = f"Set base_model_name_or_path in {file} to the folder or hub id of the model that it was trained on."
    if not isinstance(base, str) or not base or not (revision is None or isinstance(revision, str)):
        raise RmkitError(f"The adapter {name} does not name its base.", edit)
    # A path that does not exist may be relative to the adapter, also if adapter and base have moved together.
    moved = file.parent / (relative if isinstance(relative, str) else base)
    if not os.path.exists(base) and os.path.exists(moved):
        base = str(moved)
    if model_file(base, "config.json", revision) is None and model_file(base, CONFIG, revision) is None:
        raise RmkitError(f"The base of the adapter {name} is missing: {base}.", f"Fetch it to this machine. Or: {edit}")
    return base, revision


def chain(name: str, revision: str | None = None) -> list[Adapter]:
    """The adapter at `name`, the adapter that is its base, and so on, down to a whole model; empty for a whole model.

    Raises:
        RmkitError: if an adapter is its own base; see also `find_adapter`.
    """
    found: list[Adapter] = []
    adapter = find_adapter(name, revision)
    while adapter is not None:
        if adapter.folder.resolve() in {earlier.folder.resolve() for earlier in found}:
            raise RmkitError(
                f"The adapter {adapter.name} is its own base.",
                f"Set base_model_name_or_path in {adapter.folder / CONFIG} to the model that it was trained on.",
            )
        found.append(adapter)
        adapter = find_adapter(adapter.base, adapter.base_revision)
    return found


def attach(model: PreTrainedModel, adapter: Adapter, rows: int) -> tuple[PeftModel, list[str]]:
    """Put the adapter on the model; also returns the names of base weights that the adapter changes permanently.

    Without such changes, disabling the adapter gives the base. Embeddings that are saved with the adapter (for added
    tokens) count as a change if they differ in rows that the base has.

    Args:
        rows: embedding rows of the base, without rows for added tokens.

    Raises:
        RmkitError: if adapter and model do not fit: weights are unexpected, missing or of the wrong shape.
    """
    peft_model, changed = _attach(model, adapter, rows)
    unembedding = model.get_output_embeddings()
    if unembedding is not None and not hasattr(unembedding, "out_features"):
        raise RmkitError(
            f"The adapter {adapter.name} replaces the unembedding by {type(unembedding).__name__}.", _MERGE
        )
    return peft_model, changed


def _attach(model: PreTrainedModel, adapter: Adapter, rows: int) -> tuple[PeftModel, list[str]]:
    weights = adapter.weights()
    embeddings = _saved_embeddings(model, weights, rows)
    _grow_embeddings(model, adapter, weights)
    before = {name: (tensor, tensor._version, tensor.data_ptr()) for name, tensor in model.named_parameters()}
    # PiSSA and OLoRA subtract their initial values from the base's weights; only comparing the values shows it.
    computed = isinstance(getattr(adapter.config, "init_lora_weights", None), str)
    values = {name: tensor.detach().clone() for name, tensor in model.named_parameters()} if computed else {}
    cause = f"The adapter {adapter.name} cannot be put on its base {adapter.base}"
    task_type = TaskType.SEQ_CLS if hasattr(model, "score") else TaskType.CAUSAL_LM
    config = copy.deepcopy(adapter.config)
    if config.task_type != task_type:
        config.task_type = None  # a language model's adapter in a classifier
    with library_errors(cause, _SAVE), catch_warnings(action="ignore"):
        try:
            peft_model = PeftModel.from_pretrained(model, str(adapter.folder), config=config, torch_device="cpu")
        except KeyError as error:
            raise RmkitError(f"The adapter {adapter.name} lacks weights: {error.args[0]}.", _SAVE) from None
        # `from_pretrained` does not report unexpected weights; `load_adapter` does.
        report = peft_model.load_adapter(str(adapter.folder), "default", torch_device="cpu")
        expected = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    missing = set(report.missing_keys) | (expected.keys() - weights.keys())
    if missing:
        raise RmkitError(f"The adapter {adapter.name} lacks weights: {summarize(missing)}.", _SAVE)
    if report.unexpected_keys:
        raise RmkitError(
            f"The adapter {adapter.name} has weights that have no place in its base {adapter.base}: "
            f"{summarize(report.unexpected_keys)}.",
            "Give it the base that it was trained on (base_model_name_or_path), or save it again.",
        )
    current = {id(tensor) for tensor in peft_model.parameters()}
    changed = [
        name
        for name, (tensor, version, address) in before.items()
        if id(tensor) not in current
        or tensor._version != version
        or tensor.data_ptr() != address
        or (name in values and not torch.equal(values[name], tensor))
    ]
    unchanged = {
        name for name, old in embeddings.items() if torch.equal(old, before[name][0][: len(old)].to(old.dtype))
    }
    return peft_model, [name for name in changed if name not in unchanged]


def merge(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Merge the adapter into the model's weights.

    Raises:
        RmkitError: see `attach`; also if the method cannot be merged, and under ZeRO-3, which partitions models.
    """
    if is_deepspeed_zero3_enabled():
        raise RmkitError(f"The adapter {adapter.name} cannot be merged into a model that ZeRO-3 partitions.", _MERGE)
    rows = model.get_input_embeddings().weight.shape[0]
    check_tokens(adapter, rows)
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    peft_model, _ = _attach(model, adapter, rows)
    wrapped = model.get_input_embeddings() is not inputs or model.get_output_embeddings() is not outputs
    if tied and outputs is not None and wrapped and not getattr(adapter.config, "trainable_token_indices", None):
        raise RmkitError(
            f"The adapter {adapter.name} changes only one of the two embeddings that its base ties.",
            "It can be scored but not merged: give the base itself, or train the adapter without embeddings.",
        )
    with (
        library_errors(f"The adapter {adapter.name} cannot be merged into its base", _MERGE),
        catch_warnings(action="ignore"),
    ):
        merged = peft_model.merge_and_unload()
    merged.requires_grad_(True)  # PEFT has frozen them
    merged.name_or_path = adapter.name
    return merged


def check_tokens(adapter: Adapter, rows: int) -> None:
    """Refuse an adapter whose tokenizer has more tokens than the base has rows, unless the rows are saved with it.

    rmkit's own adapters need no saved rows: those that it adds are a function of the base.
    """
    if not (adapter.folder / TOKENIZER).is_file() or (adapter.folder / RECORD).is_file():
        return
    with library_errors(f"No tokenizer could be loaded from {adapter.name}", "Save its tokenizer again."):
        tokens = len(AutoTokenizer.from_pretrained(str(adapter.folder)))
    saved = any("embed" in weight or "lm_head" in weight for weight in adapter.weights())
    if tokens > rows and not saved and not getattr(adapter.config, "trainable_token_indices", None):
        raise RmkitError(
            f"The tokenizer of the adapter {adapter.name} has {tokens} tokens, but its base has rows for {rows}.",
            "Save it again with the rows of the added tokens (save_pretrained with save_embedding_layers=True).",
        )


def _check_method(name: str, config: PeftConfig) -> None:
    unsupported = config.is_prompt_learning or config.peft_type in _UNSUPPORTED
    if unsupported or getattr(config, "alora_invocation_tokens", None):
        method = "aLoRA" if not unsupported else getattr(config.peft_type, "value", config.peft_type)
        raise RmkitError(
            f"{name} is an adapter of PEFT's method {method}, which changes a model's inputs rather than its layers.",
            "Train with a method that can be merged, such as LoRA.",
        )
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.startswith("pissa_niter"):
        raise RmkitError(
            f"{name} is an adapter initialized by {start}, which changes the base at random on every load.",
            _MERGE,
        )


def _grow_embeddings(model: PreTrainedModel, adapter: Adapter, weights: dict[str, Tensor]) -> None:
    """Grow the base's embeddings to the rows that are saved with the adapter."""
    names = _embedding_names(model)
    found = [saved for name in names if (saved := _saved(name, weights)) is not None]
    rows, old = {len(weight) for weight in found}, model.get_input_embeddings().weight.shape[0]
    if not rows or rows == {old}:
        return
    if len(rows) > 1 or min(rows) < old or len(found) < len(names):
        raise RmkitError(
            f"The adapter {adapter.name} has embeddings of {sorted(rows)} rows for a base of {old}.",
            "Save it again with all of its embeddings (save_embedding_layers=True).",
        )
    model.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _embedding_names(model: PreTrainedModel) -> list[str]:
    """The names of the input and the output embeddings' weights, one if they are tied."""
    weights = [
        layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None
    ]
    return [name for name, tensor in model.named_parameters() if any(tensor is weight for weight in weights)]


def _saved(name: str, weights: dict[str, Tensor]) -> Tensor | None:
    """A base weight that is saved with an adapter, whether or not the adapter targets it."""
    return weights.get(_PREFIX + name, weights.get(f"{_PREFIX}{name.removesuffix('weight')}base_layer.weight"))


def _saved_embeddings(model: PreTrainedModel, weights: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Copies of the first rows of the base's embeddings that the adapter also saves, in the adapter's dtype."""
    found = {}
    for name, tensor in model.named_parameters():
        saved = _saved(name, weights) if name in _embedding_names(model) else None
        if saved is not None:
            found[name] = tensor.detach()[:rows].to(saved.dtype, copy=True)
    return found
