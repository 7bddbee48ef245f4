"""Train a reward model from a recipe, and score every evaluation set before and after.

    accelerate launch rmkit/train.py recipes/llama8b_exrm.yaml [section.key=value ...] [--overwrite]

Recipe -> data -> encoded pairs -> trainer -> rewards -> run directory. The type of the reward model is decided by the
recipe's reward_model section and nowhere in this file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the folder of this file must not stand in front of libraries of the same names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import time
from typing import Annotated, Any

import torch
import typer
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType
from torch import Tensor, nn
from transformers import AutoConfig, TrainerCallback, set_seed

from rmkit import distributed, environment
from rmkit.batching import PairCollator
from rmkit.encoding import ChatEncoder
from rmkit.errors import RmkitError, reported
from rmkit.evaluation.scoring import PairRewards, pair_outputs, pair_rewards
from rmkit.evaluation.statistics import by_category, length_baselines, unseen_prompt_accuracy, unseen_prompt_mask
from rmkit.evaluation.tables import print_counts, print_metrics
from rmkit.pairs import EncodedPairs, encode_pairs
from rmkit.preferences import PreferenceData
from rmkit.recipe import Recipe, load_recipe, training_arguments
from rmkit.reward_models import RewardModel, reward_model, trainer_class
from rmkit.reward_models.checkpoint import Origin, Record, load, load_model, load_reference, save
from rmkit.run_directory import FINAL, FORMAT, INITIAL, RunDirectory, write_json, write_table, write_text
from rmkit.sources.use import load_set
from rmkit.vocabulary import load_tokenizer

_PROBE_PAIRS = 4


def train(recipe: Recipe, overwrite: bool = False) -> RunDirectory:
    """Run a recipe from start to finish; returns the run directory.

    Raises:
        RmkitError: for every mistake that the user can mend, before weights are loaded wherever it can be known then.
    """
    started = time.time()
    arguments, plan = _training_arguments(recipe)
    state = PartialState()
    run = RunDirectory(recipe.output_dir)
    if state.is_main_process:
        run.claim(overwrite)
        write_text(run.path / "recipe.yaml", recipe.to_yaml())
    with state.main_process_first():
        data = _load_data(recipe)
        base = _base(recipe, data[recipe.data.train.name])
    kind, record = _reward_model(recipe, base, bool(arguments.bf16), state)
    encoded = _encode(recipe, data, kind, base, state)

    with distributed.unsharded():
        references = _other_reference(recipe, kind, encoded, state)
    set_seed(arguments.seed)  # before the head is drawn
    model = load_model(
        kind,
        base,
        dtype=recipe.base.dtype,
        attention=recipe.base.attention,
        trust_remote_code=recipe.base.trust_remote_code,
    )
    training_set = encoded[recipe.data.train.name]
    trainer = trainer_class(recipe.reward_model)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(training_set.columns()),
        data_collator=PairCollator(kind.encoder.tokenizer.pad_token_id),
        processing_class=kind.encoder.tokenizer,
        peft_config=_lora(recipe, kind),
    )
    trainer.reward_model = kind
    scoring = ScoringCallback(recipe, trainer, kind, encoded, run, references)
    trainer.add_callback(scoring)
    outcome = trainer.train()
    scoring.score(FINAL, trainer.state.epoch or 0.0)
    _save(trainer, kind, record, run, training_set.head(_PROBE_PAIRS), recipe.evaluation.batch_size)

    if state.is_main_process:
        content = _run_record(recipe, data, encoded, scoring, record, trainer, outcome.metrics, plan, started)
        write_json(run.record, content)
        print_metrics(content)
    state.wait_for_everyone()
    return run


class ScoringCallback(TrainerCallback):
    """Scores the sets with the model as it is being trained: before the first step, after epochs, at the end.

    Before the first step the model is its own reference (`reference: base`), so the reference's outputs are taken then,
    in the same batches, and no second model is held.
    """

    def __init__(
        self,
        recipe: Recipe,
        trainer: Any,
        kind: RewardModel[Any],
        encoded: dict[str, EncodedPairs],
        run: RunDirectory,
        references: dict[str, Tensor],
    ):
        self.recipe, self.trainer, self.kind, self.encoded, self.run = recipe, trainer, kind, encoded, run
        self.references = references
        self.history: list[dict[str, Any]] = []
        self.scored: dict[str, PairRewards] = {}
        self.scored_step = -1
        self.seconds = 0.0
        self.seconds_in_training = 0.0  # the part that transformers counts as training

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The reference's outputs on every set, then the initial rewards."""
        started = time.time()
        if self.kind.reference == "base":
            model = self._unwrapped()
            if isinstance(model, PeftModel):
                with model.disable_adapter():
                    self.references = self._reference_outputs()
            else:
                self.references = self._reference_outputs()
        self.trainer.reference_outputs = self.references.get(self.recipe.data.train.name)
        self.seconds += time.time() - started
        self.score(INITIAL, 0.0)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The rewards after this epoch, where the recipe asks."""
        if self.recipe.evaluation.every_epoch:
            self.score(f"epoch_{round(state.epoch)}", state.epoch)

    def score(self, state: str, epoch: float) -> None:
        """Score all sets and write their rewards."""
        started = time.time()
        step = self.trainer.state.global_step
        if step != self.scored_step:
            self.scored, self.scored_step = {}, step
        sets = {}
        for name, pairs in self.encoded.items():
            if name == self.recipe.data.train.name and not (state == FINAL and self.recipe.evaluation.train_fit):
                continue
            if name not in self.scored:  # the last epoch's rewards are the final ones
                outputs = self._outputs(name, f"{state}: {name}")
                self.scored[name] = pair_rewards(self.kind, outputs, self.references.get(name))
            sets[name] = self.scored[name].summary() | self._on_unseen_prompts(name)
            if self.trainer.is_world_process_zero():
                write_rewards(self.run, name, state, pairs, self.scored[name])
        self.history.append({"state": state, "epoch": epoch, "step": step, "sets": sets})
        self.seconds += time.time() - started
        if state != FINAL:
            self.seconds_in_training = self.seconds

    def _on_unseen_prompts(self, name: str) -> dict[str, float]:
        """What is told beside the whole of an evaluation set that shares prompts with the training set."""
        training_name = self.recipe.data.train.name
        if name == training_name:
            return {}
        train, own = ([pair.prompt for pair in self.encoded[each].pairs] for each in (training_name, name))
        scored = self.scored[name]
        return unseen_prompt_accuracy(unseen_prompt_mask(train, own), scored.rewards, scored.log_rewards)

    def _reference_outputs(self) -> dict[str, Tensor]:
        return {name: self._outputs(name, f"reference: {name}") for name in self.encoded}

    def _outputs(self, name: str, description: str) -> Tensor:
        return pair_outputs(
            self.trainer.model_wrapped,
            self.kind,
            self.encoded[name],
            batch_size=self.recipe.evaluation.batch_size,
            description=description,
        )

    def _unwrapped(self) -> nn.Module:
        model: nn.Module = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        return model


def write_rewards(run: RunDirectory, name: str, state: str, pairs: EncodedPairs, scored: PairRewards) -> None:
    """rewards/[state/]<set>.parquet, and once a set examples/<set>.parquet."""
    index = [pair.index for pair in pairs.pairs]
    write_table(run.rewards(name, state), {"index": index} | scored.columns())
    if not run.examples(name).exists():
        texts = {column: [getattr(pair, column) for pair in pairs.pairs] for column in ("prompt", "chosen", "rejected")}
        chosen, rejected = zip(*pairs.response_lengths, strict=True)
        write_table(
            run.examples(name), {"index": index} | texts | {"chosen_tokens": chosen, "rejected_tokens": rejected}
        )


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
    arguments = trainer.config_class(**options)
    distributed.check_sharding(plan, arguments)
    return arguments, plan


def _load_data(recipe: Recipe) -> dict[str, PreferenceData]:
    sets = (recipe.data.train, *recipe.data.evaluation)
    return {each.name: load_set(each, root=recipe.data.root, identical=recipe.data.identical) for each in sets}


def _base(recipe: Recipe, training_set: PreferenceData) -> Origin:
    """The language model that training starts from, built if the recipe says so."""
    build = recipe.base.build
    if build is None:
        return Origin(name=str(recipe.base.name), revision=recipe.base.revision)
    from rmkit.bases import ensure_base, training_documents

    return Origin(name=str(ensure_base(build, *training_documents(build, training_set))))


def _reward_model(recipe: Recipe, base: Origin, autocast: bool, state: PartialState) -> tuple[RewardModel[Any], Record]:
    tokenizer, notes = load_tokenizer(
        base.name,
        revision=base.revision,
        chat_template=recipe.base.chat_template,
        added_tokens=recipe.base.added_tokens,
        trust_remote_code=recipe.base.trust_remote_code,
    )
    for note in notes if state.is_main_process else []:
        print(note)
    kind = reward_model(recipe.reward_model, ChatEncoder(tokenizer, recipe.base.date_string))
    record = Record(
        reward_model=recipe.reward_model,
        base=base,
        adapter=recipe.lora is not None,
        dtype=recipe.base.dtype,
        autocast=autocast,
        attention=recipe.base.attention,
        date_string=recipe.base.date_string,
        template_hash=kind.encoder.template_hash,
    )
    return kind, record


def _encode(
    recipe: Recipe, data: dict[str, PreferenceData], kind: RewardModel[Any], base: Origin, state: PartialState
) -> dict[str, EncodedPairs]:
    """Every set encoded once, what was left out said, and the token at which the model is read shown."""
    encoded = {
        name: encode_pairs(
            each,
            kind,
            max_length=recipe.data.max_length,
            over_length=recipe.data.over_length,
            identical=recipe.data.identical,
        )
        for name, each in data.items()
    }
    if state.is_main_process:
        config = AutoConfig.from_pretrained(
            base.name, revision=base.revision, trust_remote_code=recipe.base.trust_remote_code
        )
        print_counts(encoded, recipe.data.max_length, config.get_text_config())
        first = next(iter(encoded.values())).chosen[0]
        print(
            f"Last token of what is read: {kind.encoder.tokenizer.decode(first.ids[-1:])!r}, after "
            f"{kind.encoder.tokenizer.decode(first.ids[-6:-1])!r}."
        )
    return encoded


def _other_reference(
    recipe: Recipe, kind: RewardModel[Any], encoded: dict[str, EncodedPairs], state: PartialState
) -> dict[str, Tensor]:
    """Outputs of a reference that is not the base, taken before the policy is loaded; the reference is then dropped."""
    if kind.reference in (None, "base"):
        return {}
    origin = Origin(name=str(kind.reference), revision=kind.settings.reference_revision)
    model = load_reference(kind, origin, dtype=recipe.base.dtype, attention=recipe.base.attention).to(state.device)
    return {
        name: pair_outputs(
            model, kind, pairs, batch_size=recipe.evaluation.batch_size, description=f"reference: {name}"
        )
        for name, pairs in encoded.items()
    }


def _lora(recipe: Recipe, kind: RewardModel[Any]) -> LoraConfig | None:
    if recipe.lora is None:
        return None
    return LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=recipe.lora.target_modules,
        modules_to_save=["score"] if kind.head else None,
        task_type=TaskType.SEQ_CLS if kind.head else TaskType.CAUSAL_LM,
    )


def _save(
    trainer: Any, kind: RewardModel[Any], record: Record, run: RunDirectory, probe: EncodedPairs, batch_size: int
) -> None:
    """Write model/, then load it again and compare its outputs on a few pairs with those of the model in memory.

    Raises:
        RmkitError: if they differ: a model that cannot be trusted on reload must not look finished.
    """
    live = pair_outputs(trainer.model_wrapped, kind, probe, batch_size=batch_size)
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    save(run.model, model, state_dict, kind, record)
    with distributed.alone():
        reloaded = load(str(run.model), policy_only=True).model.to(live.device if live.is_cuda else trainer.args.device)
        again = pair_outputs(reloaded, kind, probe, batch_size=batch_size)
    # Bit for bit where the arithmetic is the same; sharded or on a GPU, kernels may add in another order.
    exact = trainer.args.device.type == "cpu" and trainer.args.world_size == 1
    same = torch.equal(live, again) if exact else torch.allclose(live, again, rtol=1e-3, atol=1e-3)
    if not same:
        raise RmkitError(
            f"{run.model}, loaded again, gives other outputs (by up to {(live - again).abs().max():.3g}).",
            "Do not use this model; report this as a bug, with run.json.",
        )


def _run_record(
    recipe: Recipe,
    data: dict[str, PreferenceData],
    encoded: dict[str, EncodedPairs],
    scoring: ScoringCallback,
    record: Record,
    trainer: Any,
    train_metrics: dict[str, float],
    plan: distributed.Plan | None,
    started: float,
) -> dict[str, Any]:
    """The content of run.json."""
    training_name = recipe.data.train.name
    final = scoring.history[-1]["sets"]
    categories = {each.name: each.category for each in recipe.data.evaluation}
    evaluated = {name: metrics for name, metrics in final.items() if name != training_name}
    return {
        "format": FORMAT,
        **environment.describe(),
        "recipe": recipe.model_dump(mode="json"),
        "reward_model": record.model_dump(mode="json"),
        "num_processes": trainer.args.world_size,
        "sharding": distributed.running_sharding(trainer.args),
        "distributed": plan.name if plan else None,
        "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
        "data": {
            name: {
                "fingerprint": data[name].fingerprint,
                "pairs": len(pairs),
                "dropped": pairs.dropped,
                "category": categories.get(name),
                "training": name == training_name,
                **length_baselines(pairs.response_lengths),
            }
            for name, pairs in encoded.items()
        },
        "train_fit": final.get(training_name),
        "metrics": evaluated,
        "accuracy_by_category": by_category({name: each["accuracy"] for name, each in evaluated.items()}, categories),
        "history": scoring.history,
        "training": {
            "steps": trainer.state.global_step,
            "seconds": train_metrics.get("train_runtime", 0.0) - scoring.seconds_in_training,
            "log": [entry for entry in trainer.state.log_history if "accuracy" in entry],
        },
        "timings": {"total_seconds": time.time() - started, "scoring_seconds": scoring.seconds},
        "peak_memory_mib": environment.peak_memory_mib(),
    }


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe, for example recipes/llama8b_exrm.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")] = False,
) -> None:
    """Train a reward model from a recipe."""
    with reported():
        train(load_recipe(recipe, overrides or []), overwrite)


if __name__ == "__main__":
    typer.run(main)
