"""Train a reward model from a recipe, and score every evaluation set before and after.

    accelerate launch rmkit/train.py recipes/llama8b_exrm.yaml [section.key=value ...] [--overwrite]

Recipe -> data -> encoded pairs -> trainer -> rewards -> run directory. The type of the reward model is decided by the
recipe's reward_model section and nowhere in this file.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":  # modules in this file's folder must not hide libraries of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback of theirs

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import time
from functools import cache, partial
from typing import Annotated, Any

import typer
from accelerate import PartialState
from datasets import Dataset
from transformers import set_seed

from rmkit.config.recipe import Recipe, load_recipe
from rmkit.encoding.pairs import PairCollator
from rmkit.errors import exit_on_error
from rmkit.evaluation.tables import print_metrics
from rmkit.files import write_json
from rmkit.hub import push as hub
from rmkit.models.dropout import ConfigValue, turn_off_dropout
from rmkit.models.quantization import train_in_float32
from rmkit.processes import running_sharding, skipping_teardown, visible_gpus
from rmkit.reward_models.loading import load_model
from rmkit.reward_models.probe import check_forward
from rmkit.runs.directory import FINAL, RunDirectory
from rmkit.training import launch, trainer_class
from rmkit.training.best_model import BestModelCallback
from rmkit.training.preflight import preflight
from rmkit.training.preparation import load_config, lora_config, refusals
from rmkit.training.push_callback import PushCallback
from rmkit.training.reference import References
from rmkit.training.resume import PREEMPTED_EXIT_CODE, CheckpointCallback, Preempted, check_inputs, disk_errors
from rmkit.training.run_record import run_record
from rmkit.training.saving import WriteModel, save_model, write_model
from rmkit.training.scoring_callback import ScoringCallback
from rmkit.training.training_run import TrainingRun, plan_training, prepare_run


def train(recipe: Recipe, overwrite: bool = False) -> RunDirectory:
    """Run a recipe from start to finish; returns the run directory.

    Raises:
        RmkitError: for every mistake that the user can fix, wherever possible before weights are loaded.
    """
    started, run_dir, resume = time.time(), RunDirectory(recipe.output_dir), recipe.resume == "auto"
    arguments, plan = plan_training(recipe)
    state = PartialState()
    if state.is_main_process:
        _print_launch(recipe, plan)
        run_dir.check(recipe.to_yaml(), overwrite, resume)
    if resume and not overwrite and run_dir.record.exists():
        if state.is_main_process:
            print(f"{run_dir.path} is finished already.")
            print_metrics(run_dir.read())
            _publish(recipe)
        return run_dir

    run = prepare_run(recipe, arguments, plan, resume and not overwrite, started)
    if state.is_main_process:
        _print_preflight(run)
    references = References(run.reward_model, run.metadata, recipe.evaluation.batch_size, state)
    if run.reward_model.reference not in (None, "base"):
        references.compute_from_other_model(run.encoded)
    trainer, dropout = _make_trainer(run, references)
    if state.is_main_process:
        run_dir.claim(recipe.to_yaml(), overwrite, resume)  # only now: no mistake above costs an old run
    state.wait_for_everyone()

    write = partial(write_model, run, trainer, dropout)
    scoring, best, checkpoints = _add_callbacks(run, trainer, references, write)
    train_metrics = _fit(run, trainer, checkpoints)
    kept = best.restore(trainer) or {"epoch": trainer.state.epoch or 0.0, "step": trainer.state.global_step}
    scoring.score(FINAL, kept["epoch"], kept["step"])
    save_model(run, trainer, write)
    if state.is_main_process:
        content = run_record(run, trainer, scoring, best.seconds, train_metrics)
        write_json(run_dir.record, content)
        best.remove()
        print_metrics(content)
    state.wait_for_everyone()
    if state.is_main_process:  # last, so that no process waits for the network
        _publish(recipe)
    return run_dir


def _print_launch(recipe: Recipe, plan: launch.LaunchPlan | None) -> None:
    """What the user may not expect of the processes of this run."""
    notes = [launch.override_note(recipe, plan), launch.threads_note()]
    if PartialState().num_processes == 1 and visible_gpus() > 1:
        notes.append(f"One process trains on one of {visible_gpus()} GPUs; `rmkit train RECIPE` uses all of them.")
    for note in notes:
        if note is not None:
            print(note)


def _print_preflight(run: TrainingRun) -> None:
    config, pairs = load_config(run.recipe, run.base), len(run.training_set)
    for note in preflight(run.recipe, run.reward_model, run.metadata, config, run.arguments, pairs, run.plan):
        print(note)


def _make_trainer(run: TrainingRun, references: References) -> tuple[Any, list[ConfigValue]]:
    """The trainer with the untrained model, and the dropout settings that were turned off in it."""
    recipe, reward_model, metadata = run.recipe, run.reward_model, run.metadata
    set_seed(run.arguments.seed)  # before the head is drawn
    model = load_model(
        reward_model,
        run.base,
        dtype=metadata.dtype,
        attention=recipe.base.attention,
        layout=metadata.layout,
        trust_remote_code=recipe.base.trust_remote_code,
        four_bit=metadata.four_bit,
    )
    dropout = [] if recipe.base.dropout else turn_off_dropout(model)
    tokenizer = reward_model.encoder.tokenizer
    with refusals("training arguments"):
        trainer = trainer_class(recipe.reward_model)(
            model=model,
            args=run.arguments,
            train_dataset=Dataset.from_dict(run.training_set.columns()),
            data_collator=PairCollator(
                run.training_set, tokenizer.pad_token_id, metadata.layout, reward_model.generation
            ),
            processing_class=tokenizer,
            peft_config=lora_config(recipe, reward_model),
            reward_model=reward_model,
            reference_outputs=cache(partial(references.select, run.training_rows)),
        )
    if metadata.load_in is not None:
        train_in_float32(trainer.model)
    if not running_sharding(run.arguments).startswith("zero"):  # a sharded model runs only in training
        with metadata.precision(run.arguments.device):
            check_forward(trainer.model, reward_model, half=metadata.half)
    return trainer, dropout


def _add_callbacks(
    run: TrainingRun, trainer: Any, references: References, write: WriteModel
) -> tuple[ScoringCallback, BestModelCallback, CheckpointCallback]:
    """Add rmkit's callbacks. transformers calls them in this order, after its own, at every event.

    1. ScoringCallback: computes the reference's outputs before the first step; writes its history into a checkpoint.
    2. BestModelCallback: keeps the model that was just scored if it is the best, and puts the best into a checkpoint.
    3. CheckpointCallback: marks a checkpoint complete, so everything that belongs into it must be written before.
    4. PushCallback: publishes the model last, so that a failure costs no checkpoint; its record has all scores so far.
    """
    scoring = ScoringCallback(run, trainer, references)
    checkpoints = CheckpointCallback(trainer.accelerator, run.inputs)
    best = BestModelCallback(run.recipe.evaluation, scoring, write, Path(run.arguments.output_dir))
    trainer.add_callback(scoring)
    trainer.add_callback(best)
    trainer.add_callback(checkpoints)
    if run.recipe.hub is not None and run.recipe.hub.push == "every_save":
        describe = partial(run_record, run, trainer, scoring, 0.0, {})
        trainer.add_callback(PushCallback(run.recipe.hub, run.directory, write, describe))
    return scoring, best, checkpoints


def _fit(run: TrainingRun, trainer: Any, checkpoints: CheckpointCallback) -> dict[str, float]:
    """Train from the base or the checkpoint; returns transformers' metrics of training.

    Raises:
        Preempted: after SIGTERM, with a checkpoint saved.
        RmkitError: if the disk is full, or the checkpoint belongs to other models or data.
    """
    if run.checkpoint is not None:
        check_inputs(run.checkpoint, run.inputs)
        if trainer.is_world_process_zero():
            print(f"Resuming from {run.checkpoint}.")
    with disk_errors(run.directory.path), checkpoints.listening():
        outcome = trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    if checkpoints.stopping:
        raise Preempted(PREEMPTED_EXIT_CODE)
    metrics: dict[str, float] = outcome.metrics
    return metrics


def _publish(recipe: Recipe) -> None:
    if recipe.hub is not None:
        hub.push(RunDirectory(recipe.output_dir), recipe.hub)


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe, for example recipes/llama8b_exrm.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")] = False,
) -> None:
    """Train a reward model from a recipe."""
    with exit_on_error(), skipping_teardown():
        train(load_recipe(recipe, overrides or []), overwrite)
        PartialState().destroy_process_group()


class _CallableModule(ModuleType):
    """`rmkit.train` is the function until this module is imported, and this module from then on: both can be called."""

    def __call__(self, recipe: Recipe, overwrite: bool = False) -> RunDirectory:
        return train(recipe, overwrite)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    typer.run(main)
