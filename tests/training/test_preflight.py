"""Checks before training: a refusal leaves nothing behind, and every remedy is carried out and works."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from transformers import GenerationConfig
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from typer.testing import CliRunner

from rmkit import RmkitError, load_reward_model
from rmkit.commands.check import check
from rmkit.config.recipe import load_recipe
from rmkit.data.preferences import load_preferences
from rmkit.reward_models import make_reward_model
from rmkit.reward_models.metadata import ModelMetadata
from rmkit.reward_models.origins import ModelRef
from rmkit.train import train
from rmkit.training import disk_space, launch
from rmkit.training.preflight import preflight
from rmkit.training.preparation import load_config, load_encoder, trainer_arguments

pytestmark = pytest.mark.smoke

INSTALLABLE = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}


@pytest.fixture
def recipe(models, pairs, tmp_path):
    """A recipe on disk; keywords change its sections."""

    def write(**sections):
        content = {
            "base": {"name": str(models["qwen2"])} | sections.pop("base", {}),
            "reward_model": {"type": "explicit"},
            "data": {
                "root": str(pairs),
                "train": {"name": "train", "path": "train.jsonl", "split": "train"},
                "evaluation": [{"name": "test", "path": "test.jsonl"}],
            },
            "training": {"num_train_epochs": 1, "learning_rate": 1e-3, "batch_size": 8} | sections.pop("training", {}),
            "output_dir": str(tmp_path / "runs" / "run"),
        } | sections
        (tmp_path / "recipe.yaml").write_text(json.dumps(content))
        return tmp_path / "recipe.yaml"

    return write


def tried(path, plan=None):
    """The warnings of the checks before a run of the 24 training pairs, without the data."""
    loaded = load_recipe(path)
    base = ModelRef(name=str(loaded.base.name))
    reward_model = make_reward_model(loaded.reward_model, load_encoder(loaded, base)[0])
    record = ModelMetadata(reward_model=loaded.reward_model, base=base, adapter=loaded.lora is not None)
    arguments = trainer_arguments(loaded, 1, use_cpu=True)
    notes = preflight(loaded, reward_model, record, load_config(loaded, base), arguments, 24, plan)
    assert [note for note in notes if note.startswith("Disk: the run writes at least ")]
    return [note for note in notes if not note.startswith("Disk: ")]


def refusal(path, plan=None):
    with pytest.raises(RmkitError) as error:
        tried(path, plan)
    return error.value


# --- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_every_optimizer_takes_a_step_or_is_refused_by_name(recipe, tmp_path, name):
    if name in INSTALLABLE:
        assert tried(recipe(training={"optim": name})) == []
        return
    error = refusal(recipe(training={"optim": name}))
    assert f"training.optim {name} needs the package " in error.cause
    package = error.cause.rpartition(" ")[2].rstrip(".")
    assert f"`pip install {package}`" in error.remedy.replace("git+https://github.com/pytorch/", "")
    assert "training.optim: adamw_torch" in error.remedy
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", [name.value for name in SchedulerType])
def test_every_schedule_takes_a_step_or_is_refused(recipe, name):
    training = {"lr_scheduler_type": name}
    options = {
        "cosine_with_min_lr": {"min_lr": 1e-5},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
        "warmup_stable_decay": {"num_decay_steps": 1},
    }
    if name in ("reduce_lr_on_plateau", "greedy"):
        assert "follows a metric" in refusal(recipe(training=training)).cause
        return
    if name in options:
        error = refusal(recipe(training=training))
        assert f"training.lr_scheduler_type {name} cannot be used" in error.cause
        assert "lr_scheduler_kwargs" in error.remedy
        training["lr_scheduler_kwargs"] = options[name]
    assert tried(recipe(training=training)) == []


@pytest.mark.parametrize(
    ("training", "message", "fix"),
    [
        ({"optim": "sgd", "optim_args": "nesterov=True"}, "Nesterov", {}),
        ({"optim": "adagrad", "optim_args": "speed=1"}, "adagrad", {}),
        ({"optim_args": "speed=1"}, "not used by optim adamw_torch", {}),
        ({"optim_target_modules": ["q_proj"]}, "not used by optim adamw_torch", {}),
        ({"optim": "sgd", "adam_beta2": 0.9}, "not used by optim sgd", {"adam_beta2": 0.9}),
        (
            {"save_steps": 5},
            "only has an effect with training.save_strategy steps",
            {"save_steps": 5, "save_strategy": "steps"},
        ),
        (
            {"save_total_limit": 2},
            "only has an effect with training.save_strategy steps or epoch",
            {"save_total_limit": 2, "save_strategy": "steps"},
        ),
        (
            {"save_only_model": True},
            "only has an effect with training.save_strategy steps or epoch",
            {"save_only_model": True, "save_strategy": "steps"},
        ),
        (
            {"logging_strategy": "epoch", "logging_steps": 5},
            "only has an effect with training.logging_strategy steps",
            {"logging_steps": 5},
        ),
        (
            {"activation_checkpointing_kwargs": {"use_reentrant": False}},
            "only has an effect with training.activation_checkpointing true",
            {},
        ),
        ({"liger_kernel_config": {"rope": True}}, "only has an effect with training.use_liger_kernel true", {}),
        ({"adam_beta1": 1.5}, "it must be below 1", {"adam_beta1": 0.5}),
        ({"warmup_steps": 10}, "not used by", {"warmup_steps": 1, "lr_scheduler_type": "constant_with_warmup"}),
        ({"lr_scheduler_kwargs": {"power": 2}}, "not used by lr_scheduler_type constant", {}),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-9}, "must be smaller", {}),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"x": 1}}, "unexpected keyword argument 'x'", {}),
        ({"save_strategy": "steps", "save_steps": 0}, "above 0", {"save_strategy": "steps", "save_steps": 1}),
        ({"save_strategy": "best"}, "follows a metric", {"save_strategy": "epoch"}),
        ({"save_total_limit": 0}, "above 0", {"save_total_limit": 1, "save_strategy": "epoch"}),
        ({"logging_steps": -1}, "above 0", {"logging_steps": 1}),
        ({"max_steps": 0}, "training.max_steps is 0", {"max_steps": 1}),
        ({"dataloader_drop_last": True, "batch_size": 32}, "too few for one step", {"dataloader_drop_last": False}),
        ({"dataloader_persistent_workers": True}, "num_workers > 0", {"dataloader_num_workers": 0}),
        ({"dataloader_prefetch_factor": 0, "dataloader_num_workers": 1}, "above 0", {}),
        ({"dataloader_multiprocessing_context": "x"}, "it must be 'fork', 'forkserver' or 'spawn'", {}),
        ({"log_level": "loud"}, "it must be 'debug'", {"log_level": "info"}),
        ({"ddp_backend": "x"}, "it must be 'nccl'", {}),
        ({"include_num_input_tokens_seen": "x"}, "'all' or 'non_padding'", {"include_num_input_tokens_seen": "all"}),
        ({"neftune_noise_alpha": -1.0}, "above 0", {"neftune_noise_alpha": 1.0}),
        ({"torch_compile_backend": "x"}, "training.torch_compile cannot be used", {}),
        ({"torch_compile_mode": "x"}, "Unrecognized mode=x", {}),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"x": 1}}, "'x'", {}),
        ({"use_liger_kernel": True}, "needs the package liger-kernel", {}),
        ({"report_to": "mlflow"}, "whose package is not installed", {"report_to": "none"}),
    ],
)
def test_fields_that_would_fail_late_are_refused_with_a_remedy(recipe, tmp_path, training, message, fix):
    error = refusal(recipe(training=training))
    assert message in error.cause
    assert not (tmp_path / "runs").exists()
    tried(recipe(training=fix))


def test_a_warm_up_longer_than_the_run_is_a_warning(recipe):
    training = {"lr_scheduler_type": "linear", "warmup_steps": 4}
    (note,) = tried(recipe(training=training))
    assert "warmup_steps is 4, and the run has 3 steps" in note
    assert tried(recipe(training=training | {"warmup_steps": 3})) == []


def test_attention_functions_that_are_not_installed_are_refused(recipe):
    error = refusal(recipe(base={"attention": "flash_attention_2"}))
    assert "base.attention flash_attention_2 cannot be used" in error.cause
    assert "pip install flash-attn" in error.remedy
    assert "Leave base.attention out" in error.remedy
    assert tried(recipe()) == []


def test_adapters_without_a_module_are_refused(recipe):
    error = refusal(recipe(lora={"target_modules": ["nowhere"]}))
    assert "No modules were targeted" in error.cause
    assert "lora:" in error.remedy
    assert tried(recipe(lora={"target_modules": ["q_proj"]})) == []


@pytest.mark.parametrize(
    ("lora", "cause", "remedy", "better"),
    [
        (
            {"rank_pattern": {"q_porj": 8}},
            "lora.rank_pattern: q_porj matches no module that has an adapter.",
            "Name one of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or remove it.",
            {"rank_pattern": {"q_proj": 8}},
        ),
        (
            {"target_modules": ["q_proj"], "alpha_pattern": {"v_proj": 8}},
            "lora.alpha_pattern: v_proj matches no module that has an adapter.",
            "Name one of q_proj, or remove it.",
            {"target_modules": ["q_proj"], "alpha_pattern": {r"layers.\d.self_attn.q_proj": 8}},
        ),
        (
            {"modules_to_save": ["lm_haed"]},
            "lora.modules_to_save: the model has no module lm_haed.",
            "Remove it, or write lm_head.",
            {"modules_to_save": ["lm_head"]},
        ),
    ],
)
def test_names_that_peft_would_ignore_are_refused(recipe, lora, cause, remedy, better):
    error = refusal(recipe(reward_model={"type": "implicit"}, lora=lora))
    assert (error.cause, error.remedy) == (cause, remedy)
    assert tried(recipe(reward_model={"type": "implicit"}, lora=better | {"use_dora": True})) == []


def test_a_missing_reference_or_one_with_another_tokenizer_is_refused(recipe, models, tmp_path):
    def with_reference(name):
        return recipe(reward_model={"type": "implicit", "reference": str(name)})

    for missing in ("/no/such", "nobody/nothing"):
        assert missing in refusal(with_reference(missing)).cause
        with pytest.raises(RmkitError, match=missing):
            train(load_recipe(with_reference(missing)))
    assert not (tmp_path / "runs").exists()
    other = refusal(with_reference(models["gpt_neox"]))
    assert "a different tokenizer" in other.cause
    assert "Give the model that training started from" in other.remedy
    assert tried(with_reference(models["qwen2"])) == []


def test_offloading_to_nvme_is_refused(recipe):
    def plan(device):
        return launch.LaunchPlan("mine", 1, "zero3", {"deepspeed_config": {"offload_param_device": device}})

    assert "mine offloads to NVMe" in refusal(recipe(), plan("nvme")).cause
    assert tried(recipe(), plan("cpu")) == []


def test_a_refused_run_leaves_an_old_one_untouched(recipe):
    directory = train(load_recipe(recipe()))
    before = {path: path.stat().st_mtime_ns for path in directory.path.rglob("*")}
    for training in ({"optim": "lomo"}, {"lr_scheduler_type": "cosine_with_min_lr"}):
        with pytest.raises(RmkitError):
            train(load_recipe(recipe(training=training)), overwrite=True)
        assert {path: path.stat().st_mtime_ns for path in directory.path.rglob("*")}.keys() == before.keys()
    assert directory.read()["training"]["steps"] == 3
    train(load_recipe(recipe(training={"optim": "adamw_torch"})), overwrite=True)


@pytest.mark.slow
def test_a_compiled_model_is_saved_with_the_usual_weight_names(run, pairs):
    directory = run("explicit", training={"torch_compile": True, "torch_compile_backend": "eager"})
    test = load_preferences("test.jsonl", root=pairs)
    assert load_reward_model(str(directory.model)).score_pairs(test, 16).shape == (10, 2)


# --- saving --------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(models, tmp_path):
    """A copy of a tiny model with another content of one of its files."""

    def make(file, **content):
        folder = tmp_path / "base"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(models["qwen2"], folder)
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | content))
        return {"name": str(folder)}

    return make


def test_a_generation_config_that_transformers_refuses_to_write_does_not_fail_a_run(run, base):
    """Neither model/ nor the checkpoints: it is written as it was read."""
    odd = base("generation_config.json", do_sample=False, temperature=0.5, top_p=0.9)
    directory = run("implicit", base=odd, training={"save_strategy": "epoch"})
    content = json.loads((directory.model / "generation_config.json").read_text())
    assert (content["do_sample"], content["temperature"], content["top_p"]) == (False, 0.5, 0.9)
    assert GenerationConfig.from_pretrained(directory.model).temperature == 0.5
    changed = GenerationConfig.from_pretrained(odd["name"])
    changed.pad_token_id = 1  # the control: once rmkit has set it, transformers refuses
    with pytest.raises(ValueError, match="temperature"):
        changed.save_pretrained(odd["name"])


def test_a_generation_config_that_cannot_be_read_is_refused(recipe, base):
    written = recipe(base=base("generation_config.json", max_new_tokens=-1), reward_model={"type": "generative"})
    error = refusal(written)
    assert "could not be saved: `max_new_tokens`" in error.cause
    assert "generation_config.json" in error.remedy
    fixed = base("generation_config.json", max_new_tokens=8)
    assert tried(recipe(base=fixed, reward_model={"type": "generative"})) == []


@pytest.mark.parametrize("lora", [None, {"r": 4}])
@pytest.mark.parametrize("type_name", ["explicit", "implicit", "generative"])
def test_saving_without_weights_is_rehearsed_for_every_type(recipe, monkeypatch, tmp_path, type_name, lora):
    """The tokenizer is written last; its fault is found with and without adapters."""
    written = recipe(reward_model={"type": type_name}, lora=lora)
    assert tried(written) == []
    from transformers import PreTrainedTokenizerFast

    original = PreTrainedTokenizerFast.save_pretrained

    def without_template(self, folder, **options):
        original(self, folder, **options)
        path = Path(folder) / "chat_template.jinja"
        path.write_text(path.read_text() + "{# changed #}")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", without_template)
    assert "changes when it is saved and loaded again" in refusal(written).cause
    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", lambda *_, **__: json.dumps(object()))
    error = refusal(written)
    assert "could not be saved: Object of type object is not JSON serializable" in error.cause
    assert not (tmp_path / "runs").exists()


# --- places and room -----------------------------------------------------------------------------------------------


def test_places_that_cannot_be_written_are_refused(recipe, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "used" / "checkpoints").mkdir(parents=True)
    (tmp_path / "used" / "checkpoints").rmdir()
    (tmp_path / "used" / "checkpoints").write_text("")
    for place in ("/proc/rmkit/run", f"{tmp_path}/file/run", f"{tmp_path}/file", f"{tmp_path}/used", "/dev/null/x"):
        error = refusal(recipe(output_dir=place))
        assert place in error.cause
        assert "cannot be written" in error.cause
        assert error.remedy == "Give another output_dir."
        with pytest.raises(RmkitError):
            train(load_recipe(recipe(output_dir=place)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "recipe.yaml", "used"]
    assert tried(recipe(output_dir=str(tmp_path / "other" / "run"))) == []
    assert not (tmp_path / "other").exists()
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "file"))
    assert tried(recipe()) == []  # an EX-RM keeps nothing there
    implicit = {"reward_model": {"type": "implicit"}}
    error = refusal(recipe(**implicit))
    assert "The cache" in error.cause
    assert "RMKIT_CACHE" in error.remedy
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    assert tried(recipe(**implicit)) == []


def test_a_full_quota_is_reported(recipe, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(disk_space.tempfile, "TemporaryFile", full)
    assert "quota is used up" in refusal(recipe()).cause


SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize(
    ("options", "lora"),
    [({}, None), ({"save_only_model": True}, None), ({"optim": "sgd"}, None), ({"save_total_limit": 1}, {"r": 4})],
)
def test_the_lower_bound_for_disk_space_is_what_a_run_writes(recipe, monkeypatch, lora, options):
    """Beside texts of a few kB: the tensors of model/ and of the three checkpoints, or those that are kept."""
    seen = []
    original = disk_space.check_room
    monkeypatch.setattr("rmkit.training.preflight.check_room", lambda *args: seen.append(args[2]) or original(*args))
    directory = train(load_recipe(recipe(training=SAVING | options, lora=lora)))
    (needed,) = seen

    def tensors(folder):
        return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".pt"))

    def close(estimate, real):  # headers of files, and the states of random numbers (14 kB)
        return estimate <= real <= estimate * 1.02 + 60_000

    checkpoints = list((directory.path / "checkpoints").glob("checkpoint-*"))
    assert len(checkpoints) == (1 if "save_total_limit" in options else 3)
    assert needed.checkpoints == (2 if "save_total_limit" in options else 3)  # the new one is there before the old goes
    assert close(needed.model, tensors(directory.model))
    assert all(close(needed.checkpoint, tensors(folder)) for folder in checkpoints)
    kept = len(checkpoints) * needed.checkpoint
    assert needed.least == max(needed.checkpoints * needed.checkpoint, kept + needed.model)


def test_a_disk_without_room_is_refused_and_one_that_may_not_suffice_is_a_warning(recipe, monkeypatch):
    def disk(free):
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    model = 4 * sum(weight.numel() for weight in tiny_classifier(recipe).parameters())
    three = SAVING | {"num_train_epochs": 1}
    disk(4 * model)
    error = refusal(recipe(training=three))  # weights and two moments, thrice, and the model: 10 times
    assert f"has room for {4 * model / 2**20:.1f} MiB" in error.cause
    assert f"at least {10 * model / 2**20:.1f} MiB" in error.cause
    assert "save_total_limit or save_only_model" in error.remedy
    disk(6 * model)
    assert tried(recipe(training=three | {"save_total_limit": 1})) == []  # two for a moment
    disk(4 * model)
    assert tried(recipe(training=three | {"save_only_model": True})) == []
    disk(4 * model - 1)
    refusal(recipe(training=three | {"save_only_model": True}))
    disk(math.ceil(1.5 * model))
    assert tried(recipe()) == []
    disk(8 * model)
    (note,) = tried(recipe(training=three | {"optim": "adafactor"}))  # of its states no lower bound is known
    assert note.startswith("warning: the run may write up to ")


def test_the_best_model_needs_room_of_its_own(recipe, monkeypatch):
    model = 4 * sum(weight.numel() for weight in tiny_classifier(recipe).parameters())
    best = {"evaluation": {"every_steps": 1, "save_best": "test.accuracy"}}
    disk = SimpleNamespace(free=2 * model)  # best/ is removed once model/ is written
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: disk)
    assert tried(recipe(**best)) == []
    disk.free -= 1
    assert f"at least {2 * model / 2**20:.1f} MiB" in refusal(recipe(**best)).cause
    assert tried(recipe()) == []


def test_evaluations_that_never_come_are_a_warning(recipe):
    (note,) = tried(recipe(evaluation={"every_steps": 4}))  # of 3
    assert note == "warning: evaluation.every_steps is 4, and the run has 3 steps: it scores at its end."
    assert tried(recipe(evaluation={"every_steps": 3})) == []


def tiny_classifier(recipe):
    from rmkit.training.checking import empty_model

    loaded = load_recipe(recipe())
    origin = ModelRef(name=str(loaded.base.name))
    reward_model = make_reward_model(loaded.reward_model, load_encoder(loaded, origin)[0])
    return empty_model(loaded, reward_model, load_config(loaded, origin))


# --- rmkit check ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"optim": "adamw_8bit"}},
        {"training": {"lr_scheduler_type": "warmup_stable_decay"}},
        {"base": {"attention": "flash_attention_2"}},
        {"output_dir": "/proc/rmkit/run"},
        {"hub": {"push": "end", "repo_id": "someone/rm"}},  # offline
    ],
)
def test_check_reports_the_errors_of_train(recipe, sections):
    path = recipe(**sections)
    with pytest.raises(RmkitError) as error:
        train(load_recipe(path))
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(check)
    result = CliRunner().invoke(app, [str(path)], env={"COLUMNS": "500"})
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert " ".join(error.value.cause.split()) in " ".join(result.output.split())
    assert " ".join(error.value.remedy.split()) in " ".join(result.output.split())
