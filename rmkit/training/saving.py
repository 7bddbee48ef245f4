"""Writing the trained model: gather the weights, save them, and reload them before the run counts as finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor

from rmkit.models.dropout import ConfigValue
from rmkit.processes import gathered, main_process_only
from rmkit.reward_models.loading import load
from rmkit.reward_models.saving import save
from rmkit.training.reload_check import PROBE_PAIRS, check_outputs, check_weights, probe_outputs
from rmkit.training.training_run import TrainingRun

WriteModel = Callable[[Path], dict[str, Tensor]]
"""Writes the model in training into a folder, see `write_model`."""


def write_model(run: TrainingRun, trainer: Any, dropout: Sequence[ConfigValue], directory: Path) -> dict[str, Tensor]:
    """Gather the weights on all processes, and write a model directory on the main one.

    Args:
        dropout: the values of the base's configuration that `turn_off_dropout` has changed.

    Returns:
        The weights on the main process; nothing on the others.
    """
    gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}  # None on other processes than the main
    weights = {name.replace("_orig_mod.", ""): weight for name, weight in gathered.items()}  # torch.compile's names
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_torch_compile=False)
        save(directory, model, weights, run.reward_model, run.metadata, dropout)
    return weights


@torch.no_grad()
def restore_weights(trainer: Any, directory: Path) -> None:
    """Copy the trained weights of a model directory into the model in memory, on all processes together."""
    weights: Mapping[str, Tensor] = {}
    if trainer.is_world_process_zero():
        with main_process_only():
            weights = load(str(directory), policy_only=True).model.state_dict()
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_torch_compile=False)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with gathered(parameter):
                if trainer.is_world_process_zero():
                    parameter.copy_(weights[name])
                broadcast(parameter.data)


def save_model(run: TrainingRun, trainer: Any, write: WriteModel) -> None:
    """Write model/, then reload it and compare its weights, and its outputs on a few pairs, with those in memory.

    Raises:
        RmkitError: if they differ: a model that cannot be trusted on reload must not look finished.
    """
    device, directory, batch_size = trainer.args.device, run.directory.model, run.recipe.evaluation.batch_size
    probe = run.training_set.head(PROBE_PAIRS)
    with run.metadata.precision(device):
        live = probe_outputs(trainer.model_wrapped, run.reward_model, probe, batch_size)
    weights = write(directory)
    if not trainer.is_world_process_zero():
        return
    with main_process_only(), run.metadata.precision(device):
        reloaded = load(str(directory), policy_only=True).model.to(device)
        check_weights(directory, weights, reloaded.state_dict())
        again = probe_outputs(reloaded, run.reward_model, probe, batch_size)
    # The same arithmetic on one CPU process; sharded, compiled or on a GPU, kernels may add in another order.
    same_arithmetic = device.type == "cpu" and trainer.args.world_size == 1 and not trainer.args.torch_compile
    check_outputs(directory, live, again, 1e-6 if same_arithmetic else 5e-2 if run.metadata.half else 1e-3)
