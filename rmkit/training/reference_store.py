"""A store of reference outputs: computed once, shared by seeds, learning rates, betas and runs.

The name of an entry is a hash of everything that its numbers depend on: the reference's weights, the dtype, the
settings of the computation and the token ids of the set. A truncated or altered entry is detected and recomputed.
Several runs may use the store at once, since entries are written atomically, by a rename.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmkit.encoding.pairs import EncodedPairs
from rmkit.files import replacing, rmkit_cache
from rmkit.model_files.adapters import find_adapter
from rmkit.model_files.gguf import is_local
from rmkit.model_files.identity import hub_commit, model_digests

FORMAT = 3
"""Part of every name: raise it when rmkit would compute other numbers from the same weights and tokens."""

_OUTPUTS = "outputs"


def weights_identity(name: str, revision: str | None = None) -> str:
    """Identify a model's weights: sha256 of the files that are loaded from a folder, or a hub repository's commit.

    For an adapter, those of its own files and of its base.
    """
    adapter = find_adapter(name, revision)
    if adapter is not None:
        return f"{_folder_identity(adapter.folder)}+{weights_identity(adapter.base, adapter.base_revision)}"
    folder = Path(name)
    return _folder_identity(folder) if is_local(folder) else f"{name}@{hub_commit(name, revision)}"


def _folder_identity(folder: Path) -> str:
    return hashlib.sha256(json.dumps(model_digests(folder), sort_keys=True).encode()).hexdigest()


class ReferenceStore:
    """Outputs [pairs, 2, outputs] of one reference, in float64, on disk below `rmkit_cache()`.

    Args:
        identity: everything besides the token ids that the numbers depend on: weights, dtype, batch size ...
    """

    def __init__(self, identity: dict[str, Any]):
        self.identity = json.dumps(identity | {"format": FORMAT}, sort_keys=True)
        self.folder = rmkit_cache() / "references"

    def outputs(self, pairs: EncodedPairs, compute: Callable[[], Tensor], is_main_process: bool = True) -> Tensor:
        """The stored outputs of a set, or those of `compute`, which all processes call together if there are none."""
        path = self.path(pairs)
        found = [_read(path, len(pairs)) if is_main_process else None]
        broadcast_object_list(found)
        if found[0] is not None:
            return found[0]
        outputs = compute()
        if is_main_process:
            _write(path, outputs)
        return outputs

    def path(self, pairs: EncodedPairs) -> Path:
        """The file of a set's entry."""
        digest = hashlib.sha256(self.identity.encode())
        for sequence in (*pairs.chosen, *pairs.rejected):
            gaps = [sequence.gaps] if sequence.gaps else []
            digest.update(json.dumps([sequence.response_start, sequence.ids, *gaps]).encode())
        return self.folder / f"{digest.hexdigest()}.safetensors"


def _read(path: Path, pairs: int) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as entry:
            outputs = entry.get_tensor(_OUTPUTS)
            intact = (entry.metadata() or {}).get("sha256") == _checksum(outputs)
    except (OSError, SafetensorError):
        return None
    return outputs if intact and len(outputs) == pairs else None


def _write(path: Path, outputs: Tensor) -> None:
    with replacing(path) as temporary:
        save_file({_OUTPUTS: outputs.contiguous()}, temporary, metadata={"sha256": _checksum(outputs)})


def _checksum(outputs: Tensor) -> str:
    return hashlib.sha256(outputs.contiguous().numpy().tobytes()).hexdigest()
