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

if __name__ == "__main__":  # the folder of this file must not stand in front of libraries of the same names
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback of theirs

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import time
from functools import partial
from typing import Annotated, Any

import torch
import typer
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from rmkit.config.recipe import Recipe, load_recipe
from rmkit.data.preferences import PreferenceData
from rmkit.encoding.batches import PairCollator
from rmkit.encoding.pairs import EncodedPairs
from rmkit.errors import exit_on_error
from rmkit.evaluation.tables import print_counts, print_metrics
from rmkit.files import write_json
from rmkit.hub import push as hub
from rmkit.model_files.identity import on_main_process, saved_tokenizer_digests
from rmkit.models.dropout import ConfigValue, turn_off_dropout
from rmkit.models.shared_attention import possible_layout
from rmkit.processes import main_process_only, running_processes, running_sharding, skipping_teardown, visible_gpus
from rmkit.reward_models import RewardModel, make_reward_model
from rmkit.reward_models.origins import identify
from rmkit.reward_models.probe import check_forward
from rmkit.reward_models.saving import ModelMetadata, ModelRef, load, load_model, save
from rmkit.runs.directory import FINAL, RunDirectory
from rmkit.training import launch, trainer_class
from rmkit.training.preflight import preflight
from rmkit.training.preparation import (
    encode,
    load_config,
    load_data,
    load_encoder,
    lora_config,
    make_record,
    refusals,
    refuse_beyond_positions,
    trainer_arguments,
    warnings,
)
from rmkit.training.push_callback import PushCallback
from rmkit.training.reference import References
from rmkit.training.reload_check import PROBE_PAIRS, check_outputs, check_weights, probe_outputs
from rmkit.training.resume import (
    PREEMPTED_EXIT_CODE,
    CheckpointCallback,
    Preempted,
    check_models,
    disk_errors,
    newest_complete,
    recorded_commits,
)
from rmkit.training.run_record import run_record
from rmkit.training.scoring_callback import ScoringCallback


def train(recipe: Recipe, overwrite: bool = False) -> RunDirectory:
    """Run a recipe from start to finish; returns the run directory.

    Raises:
        RmkitError: for every mistake that the user can mend, before weights are loaded wherever it can be known then.
    """
    started = time.time()
    arguments, plan = _training_arguments(recipe)
    state = PartialState()
    if threads := launch.threads(state.num_processes):
        torch.set_num_threads(threads)
    if state.num_processes == 1 and visible_gpus() > 1:
        print(f"One process trains on one of {visible_gpus()} GPUs; `rmkit train RECIPE` uses all of them.")
    run = RunDirectory(recipe.output_dir)
    resume = recipe.resume == "auto"
    if state.is_main_process:
        run.check(recipe.to_yaml(), overwrite, resume)
    if resume and not overwrite and run.record.exists():
        if state.is_main_process:
            print(f"{run.path} is finished already.")
            print_metrics(run.read())
            _publish(recipe, run)
        return run
    with state.main_process_first():
        data = load_data(recipe)
        base = _base(recipe, data[recipe.data.train.name])
    checkpoint = newest_complete(Path(arguments.output_dir)) if resume and not overwrite else None
    commits = recorded_commits(checkpoint)
    base = base.model_copy(update={"revision": commits.get("base", base.revision)})
    identified = identify(base, run.model)
    base = base.model_copy(update={"revision": identified.revision})  # of a hub id the commit that is recorded
    reward_model, record = _reward_model(recipe, base, arguments, state, commits.get("reference"))
    record = record.model_copy(update={"base": identified})
    encoded = _encode(recipe, data, reward_model, base, state)
    training_set = encoded[recipe.data.train.name]
    if state.is_main_process:
        for note in preflight(
            recipe, reward_model, record, load_config(recipe, base), arguments, len(training_set), plan
        ):
            print(note)

    references = References(reward_model, record, recipe.evaluation.batch_size, state)
    if reward_model.reference not in (None, "base"):
        references.compute_from_other_model(encoded)

    def untrained() -> PreTrainedModel:
        set_seed(arguments.seed)  # before the head is drawn
        return load_model(
            reward_model,
            base,
            dtype=record.dtype,
            attention=recipe.base.attention,
            layout=record.layout,
            trust_remote_code=recipe.base.trust_remote_code,
        )

    model = untrained()
    dropout = [] if recipe.base.dropout else turn_off_dropout(model)
    with refusals("the trainer"):
        trainer = trainer_class(recipe.reward_model)(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(training_set.columns()),
            data_collator=PairCollator(
                reward_model.encoder.tokenizer.pad_token_id, record.layout, reward_model.generation
            ),
            processing_class=reward_model.encoder.tokenizer,
            peft_config=lora_config(recipe, reward_model),
        )
    if not running_sharding(arguments).startswith("zero"):  # sharded, a model can be run only in training
        with record.precision(arguments.device):
            check_forward(trainer.model, reward_model, half=record.half)
    if state.is_main_process:
        run.claim(recipe.to_yaml(), overwrite, resume)  # only now: no mistake above costs an old run
    state.wait_for_everyone()
    trainer.reward_model = reward_model
    scoring = ScoringCallback(recipe, trainer, reward_model, encoded, run, references)
    stopping = CheckpointCallback(trainer.accelerator, record.models)
    trainer.add_callback(scoring)
    trainer.add_callback(stopping)
    if recipe.hub is not None and recipe.hub.push == "every_save":
        write = partial(_write_model, trainer, reward_model, record, dropout)
        describe = partial(run_record, recipe, data, encoded, scoring, record, trainer, {}, plan, started)
        trainer.add_callback(PushCallback(recipe.hub, run, write, describe))
    if checkpoint is not None:
        check_models(checkpoint, record.models)
    if checkpoint is not None and state.is_main_process:
        print(f"Going on from {checkpoint}.")
    with disk_errors(run.path), stopping.listening():
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stopping.stopping:
        raise Preempted(PREEMPTED_EXIT_CODE)
    scoring.score(FINAL, trainer.state.epoch or 0.0)
    _save(trainer, reward_model, record, dropout, run, training_set.head(PROBE_PAIRS), recipe.evaluation.batch_size)

    if state.is_main_process:
        content = run_record(recipe, data, encoded, scoring, record, trainer, outcome.metrics, plan, started)
        write_json(run.record, content)
        print_metrics(content)
    state.wait_for_everyone()
    if state.is_main_process:  # last, so that no process waits for the network
        _publish(recipe, run)
    return run


def _training_arguments(recipe: Recipe) -> tuple[Any, launch.LaunchPlan | None]:
    """TrainingArguments of the type's class, processes and sharding checked."""
    launch.check_launcher()
    plan = launch.plan(recipe)
    processes = running_processes()
    launch.check_processes(plan, processes)
    options = launch.training_options(plan)
    if recipe.base.dtype == "bfloat16" and plan is not None and plan.uses_deepspeed:
        options["bf16"] = True  # DeepSpeed has one dtype for the whole model, float32 unless it is told
    launch.check_precision(bool(options.get("bf16") or recipe.training.get("bf16")))
    arguments = trainer_arguments(recipe, processes, **options)
    # With several GPUs in sight of one process, transformers would take all of them through DataParallel.
    arguments._n_gpu = min(1, arguments.n_gpu)
    launch.check_sharding(plan, arguments)
    launch.check_deepspeed(arguments)
    return arguments, plan


def _base(recipe: Recipe, training_set: PreferenceData) -> ModelRef:
    """The language model that training starts from, built if the recipe says so."""
    build = recipe.base.build
    if build is None:
        return ModelRef(name=str(recipe.base.name), revision=recipe.base.revision)
    from rmkit.models.tiny_base import ensure_base, training_documents

    return ModelRef(name=str(ensure_base(build, *training_documents(build, training_set))))


def _reward_model(
    recipe: Recipe, base: ModelRef, arguments: Any, state: PartialState, commit: str | None = None
) -> tuple[RewardModel[Any], ModelMetadata]:
    """The reward model of a recipe and its record; `commit` is that of the reference, where it is known."""
    encoder, notes = load_encoder(recipe, base)
    layout, fallback = possible_layout(recipe.layout, load_config(recipe, base), recipe.base.attention)
    for note in [*notes, *fallback] if state.is_main_process else []:
        print(note)
    reward_model = make_reward_model(recipe.reward_model, encoder)
    reference = None
    if reward_model.reference not in (None, "base"):
        named = ModelRef(name=str(reward_model.reference), revision=commit or reward_model.settings.reference_revision)
        reference = identify(named, RunDirectory(recipe.output_dir).model)
    record = make_record(recipe, reward_model, base, layout, arguments, running_sharding(arguments))
    tokenizer = on_main_process(partial(saved_tokenizer_digests, reward_model.encoder.tokenizer))
    record = record.model_copy(update={"reference": reference, "tokenizer": tokenizer})
    return reward_model, record


def _encode(
    recipe: Recipe, data: dict[str, PreferenceData], reward_model: RewardModel[Any], base: ModelRef, state: PartialState
) -> dict[str, EncodedPairs]:
    """Every set encoded once, what was left out said, and the token at which the model is read shown."""
    encoded = encode(recipe, data, reward_model)
    config = load_config(recipe, base)
    if state.is_main_process:
        print_counts(encoded, recipe.data, config)
        for line in warnings(recipe, data, {name: each.pairs for name, each in encoded.items()}):
            print(line)
        first = next(iter(encoded.values())).chosen[0]
        print(
            f"Last token of what is read: {reward_model.encoder.tokenizer.decode(first.ids[-1:])!r}, after "
            f"{reward_model.encoder.tokenizer.decode(first.ids[-6:-1])!r}."
        )
    refuse_beyond_positions(recipe, encoded, config)
    return encoded


def _publish(recipe: Recipe, run: RunDirectory) -> None:
    if recipe.hub is not None:
        hub.push(run, recipe.hub)


def _write_model(
    trainer: Any, reward_model: RewardModel[Any], record: ModelMetadata, dropout: list[ConfigValue], directory: Path
) -> dict[str, Tensor]:
    """Gather the weights on all processes, and write a model directory on the main one; returns the weights there."""
    gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}  # None on other processes than the main
    weights = {name.replace("_orig_mod.", ""): each for name, each in gathered.items()}  # torch.compile's names
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_torch_compile=False)
        save(directory, model, weights, reward_model, record, dropout)
    return weights


def _save(
    trainer: Any,
    reward_model: RewardModel[Any],
    record: ModelMetadata,
    dropout: list[ConfigValue],
    run: RunDirectory,
    probe: EncodedPairs,
    batch_size: int,
) -> None:
    """Write model/, then load it again and compare its weights, and its outputs on a few pairs, with those in memory.

    Raises:
        RmkitError: if they differ: a model that cannot be trusted on reload must not look finished.
    """
    device = trainer.args.device
    with record.precision(device):
        live = probe_outputs(trainer.model_wrapped, reward_model, probe, batch_size)
    weights = _write_model(trainer, reward_model, record, dropout, run.model)
    if not trainer.is_world_process_zero():
        return
    with main_process_only(), record.precision(device):
        reloaded = load(str(run.model), policy_only=True).model.to(device)
        check_weights(run.model, weights, reloaded.state_dict())
        again = probe_outputs(reloaded, reward_model, probe, batch_size)
    # The same arithmetic on one CPU process; sharded, compiled or on a GPU, kernels may add in another order.
    same_arithmetic = device.type == "cpu" and trainer.args.world_size == 1 and not trainer.args.torch_compile
    low_precision = record.dtype == "bfloat16" or record.autocast
    check_outputs(run.model, live, again, 1e-6 if same_arithmetic else 5e-2 if low_precision else 1e-3)


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
