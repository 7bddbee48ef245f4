"""Train a reward model from a recipe, and score every evaluation set before and after.

    accelerate launch rmkit/train.py recipes/llama8b_exrm.yaml [section.key=value ...] [--overwrite]

Recipe -> data -> encoded pairs -> trainer -> rewards -> run directory. The type of the reward model is decided by the
recipe's reward_model section and nowhere in this file.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the folder of this file must not stand in front of libraries of the same names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import torch
import typer
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, set_seed

from rmkit import distributed, hub
from rmkit.attention import possible_layout
from rmkit.batching import PairCollator
from rmkit.checkpoints import PREEMPTED_EXIT_CODE, CheckpointCallback, Preempted, disk_errors, newest_complete
from rmkit.errors import RmkitError, reported
from rmkit.evaluation.scoring import pair_outputs
from rmkit.evaluation.tables import print_counts, print_metrics
from rmkit.identity import on_main_process, saved_tokenizer_digests
from rmkit.pairs import EncodedPairs
from rmkit.preferences import PreferenceData
from rmkit.preparation import encode, load_config, load_data, load_encoder, lora_config
from rmkit.push_callback import PushCallback
from rmkit.recipe import Recipe, load_recipe, training_arguments
from rmkit.references import References
from rmkit.reward_models import RewardModel, reward_model, trainer_class
from rmkit.reward_models.checkpoint import Origin, Record, load, load_model, save
from rmkit.reward_models.origins import identify
from rmkit.run_directory import FINAL, RunDirectory, write_json
from rmkit.run_record import run_record
from rmkit.trainers.scoring import ScoringCallback

_PROBE_PAIRS = 4


def train(recipe: Recipe, overwrite: bool = False) -> RunDirectory:
    """Run a recipe from start to finish; returns the run directory.

    Raises:
        RmkitError: for every mistake that the user can mend, before weights are loaded wherever it can be known then.
    """
    started = time.time()
    arguments, plan = _training_arguments(recipe)
    state = PartialState()
    if threads := distributed.threads(state.num_processes):
        torch.set_num_threads(threads)
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
    identified = identify(base, run.model)
    base = base.model_copy(update={"revision": identified.revision})  # of a hub id the commit that is recorded
    kind, record = _reward_model(recipe, base, arguments, state)
    record = record.model_copy(update={"base": identified})
    if recipe.hub is not None and state.is_main_process:
        hub.prepare(run, recipe.hub, record.model_dump(mode="json"), recipe.model_dump(mode="json"))
    encoded = _encode(recipe, data, kind, base, state)

    references = References(kind, record, recipe.evaluation.batch_size, state)
    if kind.reference not in (None, "base"):
        references.take_from_other_model(encoded)

    def untrained() -> PreTrainedModel:
        set_seed(arguments.seed)  # before the head is drawn
        return load_model(
            kind,
            base,
            dtype=recipe.base.dtype,
            attention=recipe.base.attention,
            layout=record.layout,
            trust_remote_code=recipe.base.trust_remote_code,
        )

    training_set = encoded[recipe.data.train.name]
    model = untrained()
    if state.is_main_process:
        run.claim(recipe.to_yaml(), overwrite, resume)  # only now: no mistake above costs an old run
    state.wait_for_everyone()
    with _refusals("the trainer"):
        trainer = trainer_class(recipe.reward_model)(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(training_set.columns()),
            data_collator=PairCollator(kind.encoder.tokenizer.pad_token_id, record.layout),
            processing_class=kind.encoder.tokenizer,
            peft_config=lora_config(recipe, kind),
        )
    trainer.reward_model = kind
    scoring = ScoringCallback(recipe, trainer, kind, encoded, run, references)
    stopping = CheckpointCallback(trainer.accelerator)
    trainer.add_callback(scoring)
    trainer.add_callback(stopping)
    if recipe.hub is not None and recipe.hub.push == "every_save":
        write = partial(_write_model, trainer, kind, record)
        describe = partial(run_record, recipe, data, encoded, scoring, record, trainer, {}, plan, started)
        trainer.add_callback(PushCallback(recipe.hub, run, write, describe))
    checkpoint = newest_complete(Path(arguments.output_dir)) if resume else None
    if checkpoint is not None and state.is_main_process:
        print(f"Going on from {checkpoint}.")
    with disk_errors(run.path), stopping.listening():
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stopping.stopping:
        raise Preempted(PREEMPTED_EXIT_CODE)
    scoring.score(FINAL, trainer.state.epoch or 0.0)
    _save(trainer, kind, record, run, training_set.head(_PROBE_PAIRS), recipe.evaluation.batch_size)

    if state.is_main_process:
        content = run_record(recipe, data, encoded, scoring, record, trainer, outcome.metrics, plan, started)
        if recipe.theory.dynamics:
            found = _dynamics(recipe, kind, encoded, references, untrained, run, trainer.args.device)
            content["theory"] = {"dynamics": found}
        write_json(run.record, content)
        print_metrics(content)
    state.wait_for_everyone()
    if state.is_main_process:  # last, so that no process waits for the network
        _publish(recipe, run)
    return run


def _training_arguments(recipe: Recipe) -> tuple[Any, distributed.Plan | None]:
    """TrainingArguments of the type's class, processes and sharding checked."""
    options = training_arguments(recipe)
    batch_size = options.pop("batch_size")
    plan = distributed.plan(recipe)
    options |= distributed.training_options(plan)
    trainer = trainer_class(recipe.reward_model)
    options |= trainer.config_defaults
    options |= {
        "output_dir": str(recipe.output_dir / "checkpoints"),
        "per_device_eval_batch_size": recipe.evaluation.batch_size,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
    }
    options.setdefault("activation_checkpointing", False)  # TRL's classes turn it on
    processes = distributed.running_processes()
    distributed.check_processes(plan, processes)
    micro_batch_size = options["per_device_train_batch_size"]
    options["gradient_accumulation_steps"] = distributed.accumulation_steps(batch_size, micro_batch_size, processes)
    with _refusals("TrainingArguments"):
        arguments = trainer.config_class(**options)
    distributed.check_sharding(plan, arguments)
    return arguments, plan


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Say in a line what transformers, TRL or PEFT refuse of a recipe that rmkit found nothing wrong with."""
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RmkitError(
            f"{what[0].upper()}{what[1:]} cannot be made of this recipe: {lines[0]}",
            "Mend what it names under training: or lora: in the recipe.",
        ) from None


def _base(recipe: Recipe, training_set: PreferenceData) -> Origin:
    """The language model that training starts from, built if the recipe says so."""
    build = recipe.base.build
    if build is None:
        return Origin(name=str(recipe.base.name), revision=recipe.base.revision)
    from rmkit.bases import ensure_base, training_documents

    return Origin(name=str(ensure_base(build, *training_documents(build, training_set))))


def _reward_model(recipe: Recipe, base: Origin, arguments: Any, state: PartialState) -> tuple[RewardModel[Any], Record]:
    encoder, notes = load_encoder(recipe, base)
    layout, fallback = possible_layout(recipe.layout, load_config(recipe, base), recipe.base.attention)
    for note in [*notes, *fallback] if state.is_main_process else []:
        print(note)
    kind = reward_model(recipe.reward_model, encoder)
    reference = None
    if kind.reference not in (None, "base"):
        named = Origin(name=str(kind.reference), revision=kind.settings.reference_revision)
        reference = identify(named, RunDirectory(recipe.output_dir).model)
    # DeepSpeed turns the whole model to bfloat16, and that is what is saved; elsewhere bf16 means autocast.
    whole = arguments.bf16 and distributed.running_sharding(arguments).startswith("zero")
    record = Record(
        reward_model=recipe.reward_model,
        base=base,
        reference=reference,
        tokenizer=on_main_process(partial(saved_tokenizer_digests, kind.encoder.tokenizer)),
        adapter=recipe.lora is not None,
        dtype="bfloat16" if whole else recipe.base.dtype,
        autocast=arguments.bf16 and not whole,
        attention=recipe.base.attention,
        layout=layout,
        date_string=recipe.base.date_string,
        template_hash=kind.encoder.template_hash,
    )
    return kind, record


def _encode(
    recipe: Recipe, data: dict[str, PreferenceData], kind: RewardModel[Any], base: Origin, state: PartialState
) -> dict[str, EncodedPairs]:
    """Every set encoded once, what was left out said, and the token at which the model is read shown."""
    encoded = encode(recipe, data, kind)
    if state.is_main_process:
        print_counts(encoded, recipe.data.max_length, load_config(recipe, base).get_text_config())
        first = next(iter(encoded.values())).chosen[0]
        print(
            f"Last token of what is read: {kind.encoder.tokenizer.decode(first.ids[-1:])!r}, after "
            f"{kind.encoder.tokenizer.decode(first.ids[-6:-1])!r}."
        )
    return encoded


def _publish(recipe: Recipe, run: RunDirectory) -> None:
    if recipe.hub is not None:
        hub.push(run, recipe.hub)


def _write_model(trainer: Any, kind: RewardModel[Any], record: Record, directory: Path) -> None:
    """Gather the weights on all processes and write a model directory on the main one."""
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        save(directory, trainer.accelerator.unwrap_model(trainer.model_wrapped), state_dict, kind, record)


def _save(
    trainer: Any, kind: RewardModel[Any], record: Record, run: RunDirectory, probe: EncodedPairs, batch_size: int
) -> None:
    """Write model/, then load it again and compare its outputs on a few pairs with those of the model in memory.

    Raises:
        RmkitError: if they differ: a model that cannot be trusted on reload must not look finished.
    """
    live = pair_outputs(trainer.model_wrapped, kind, probe, batch_size=batch_size)
    _write_model(trainer, kind, record, run.model)
    if not trainer.is_world_process_zero():
        return
    with distributed.alone():
        reloaded = load(str(run.model), policy_only=True).model.to(live.device if live.is_cuda else trainer.args.device)
        again = pair_outputs(reloaded, kind, probe, batch_size=batch_size)
    # Bit for bit where the arithmetic is the same; sharded or on a GPU, kernels may add in another order.
    exact = trainer.args.device.type == "cpu" and trainer.args.world_size == 1
    tolerance = 5e-2 if record.dtype == "bfloat16" or record.autocast else 1e-3
    same = torch.equal(live, again) if exact else torch.allclose(live, again, rtol=tolerance, atol=tolerance)
    if not same:
        raise RmkitError(
            f"{run.model}, loaded again, gives other outputs (by up to {(live - again).abs().max():.3g}).",
            "Do not use this model; report this as a bug, with run.json.",
        )


def _dynamics(
    recipe: Recipe,
    kind: RewardModel[Any],
    encoded: dict[str, EncodedPairs],
    references: References,
    untrained: Callable[[], PreTrainedModel],
    run: RunDirectory,
    device: torch.device,
) -> dict[str, Any]:
    """The learning dynamics (Section 4.1) before and after training, on the first training pairs."""
    from rmkit.theory.subjects import dynamics_of_run

    name = recipe.data.train.name
    training = encoded[name].head(recipe.theory.pairs)
    outputs = references.get(name)
    with distributed.alone():
        return dynamics_of_run(
            kind,
            {
                "before": lambda: untrained().to(device),
                "after": lambda: load(str(run.model), policy_only=True).model.to(device),
            },
            training,
            {other: pairs for other, pairs in encoded.items() if other != name},
            None if outputs is None else outputs[: len(training)],
            recipe.theory.learning_rate,
            recipe.evaluation.batch_size,
        )


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe, for example recipes/llama8b_exrm.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")] = False,
) -> None:
    """Train a reward model from a recipe."""
    with reported():
        train(load_recipe(recipe, overrides or []), overwrite)
        PartialState().destroy_process_group()  # left to the interpreter's exit, it sometimes aborts


if __name__ == "__main__":
    typer.run(main)
