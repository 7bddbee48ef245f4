"""Undocumented behaviour of libraries that rmkit relies on, one test per item, so that a failing upgrade names it."""

from __future__ import annotations

import inspect
import json
import os
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from accelerate.data_loader import skip_first_batches
from accelerate.state import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers import models as token_models
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DeepseekV3ForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    Trainer,
    TrainingArguments,
)
from transformers.masking_utils import sdpa_mask
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from rmkit.config.recipe import Recipe
from rmkit.config.training_arguments import OWNED_FIELDS, REFUSED_FIELDS
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.models.language_model import load
from rmkit.processes import main_process_only
from rmkit.training.explicit import ExplicitTrainer
from rmkit.training.generative import GenerativeTrainer
from rmkit.training.implicit import ImplicitTrainer
from rmkit.training.launch import training_options
from rmkit.training.micro_batches import MicroBatches
from rmkit.training.pair_trainer import PairLoader, PairTrainerMixin

TRAINERS = [ExplicitTrainer, ImplicitTrainer, GenerativeTrainer]
COLUMNS = {"row": [0, 1], "tokens": [5, 6]}


def test_a_tokenizer_is_written_as_json_and_read_again():
    """`rmkit.encoding.control_tokens` renames tokens in it: added tokens by id, a vocabulary, merges as pairs."""
    backend = tiny.tokenizer("qwen2").backend_tokenizer
    content = json.loads(backend.to_str())
    assert {"added_tokens", "model", "truncation", "padding", "post_processor"} <= content.keys()
    assert {"id", "content", "normalized"} <= content["added_tokens"][0].keys()
    assert isinstance(content["model"]["vocab"], dict)
    left, right = content["model"]["merges"][0]
    assert left + right in content["model"]["vocab"]
    unigram = json.loads(Tokenizer(token_models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)).to_str())
    assert unigram["model"]["vocab"] == [["<unk>", 0.0], ["a", -1.0]]
    again = Tokenizer.from_str(json.dumps(content))
    assert again.encode("<|im_end|>Yes").ids == backend.encode("<|im_end|>Yes").ids


@pytest.fixture(scope="module")
def trainers(models, tmp_path_factory):
    """rmkit's trainers as train.py makes them, on encoded columns."""
    by_class = {}
    folder = models["qwen2"]
    for trainer in TRAINERS:
        auto = AutoModelForSequenceClassification if trainer is ExplicitTrainer else AutoModelForCausalLM
        options = {"num_labels": 1} if trainer is ExplicitTrainer else {}
        tokenizer, _ = load_tokenizer(folder)
        model = load(auto, folder, **options)
        model.config.pad_token_id = tokenizer.pad_token_id
        arguments = trainer.config_class(
            output_dir=str(tmp_path_factory.mktemp("out")),
            use_cpu=True,
            bf16=False,
            report_to="none",
            remove_unused_columns=False,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            **trainer.config_defaults,
        )
        by_class[trainer] = trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(COLUMNS),
            data_collator=lambda rows: {"rows": rows, "index": torch.tensor([row["row"] for row in rows])},
            processing_class=tokenizer,
            peft_config=None,
            reward_model=None,  # only compute_loss uses it
        )
    return by_class


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trl_leaves_encoded_rows_as_they_are(trainers, trainer):
    """In order, with no row filtered or truncated and no column added."""
    assert trainers[trainer].train_dataset.to_dict() == COLUMNS


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (ExplicitTrainer, RewardTrainer, "_prepare_dataset"),
        (ImplicitTrainer, DPOTrainer, "_prepare_dataset"),
        (ImplicitTrainer, DPOTrainer, "_precompute_ref_logps"),
    ],
)
def test_trl_calls_the_methods_that_rmkit_overrides(ours, theirs, name):
    assert name in vars(ours)
    assert f"self.{name}(" in inspect.getsource(theirs.__init__)
    assert list(inspect.signature(getattr(theirs, name)).parameters)[1] == "dataset"


def test_dpo_trainer_keeps_no_second_model_with_precomputed_references(trainers):
    assert trainers[ImplicitTrainer].ref_model is None
    assert trainers[ImplicitTrainer].args.precompute_ref_log_probs


def test_trainers_leave_models_bound_to_rmkits_forward(trainers):
    """Whatever they put around it: a head still sees the hidden states of all positions."""
    for trainer in trainers.values():
        seen = trainer.model_wrapped(input_ids=torch.arange(6).view(2, 3), reward_head=lambda model, hidden: hidden)
        assert seen.shape == (6, trainer.model.config.hidden_size)


@pytest.mark.parametrize("config", [RewardConfig, DPOConfig])
def test_trls_configurations_are_training_arguments_with_these_fields(config):
    fields = set(inspect.signature(config).parameters)
    assert set(inspect.signature(TrainingArguments).parameters) <= fields
    assert {"max_length", "activation_checkpointing"} <= fields
    assert ("precompute_ref_log_probs" in fields) == (config is DPOConfig)


@pytest.mark.parametrize("parent", [Trainer, RewardTrainer, DPOTrainer])
def test_the_methods_that_rmkit_overrides_have_these_parameters(parent):
    def parameters(name):
        return list(inspect.signature(getattr(parent, name)).parameters)

    assert parameters("compute_loss")[:5] == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    assert parameters("get_batch_samples") == ["self", "epoch_iterator", "num_batches", "device"]
    assert parameters("log")[:3] == ["self", "logs", "start_time"]
    assert parent.create_model_card


@pytest.mark.parametrize("trainer", TRAINERS)
def test_rmkits_methods_come_first(trainer):
    for name in ("compute_loss", "get_batch_samples", "log", "create_model_card", "loss_is_scaled_for_ga"):
        assert inspect.getattr_static(trainer, name) is vars(PairTrainerMixin)[name]


def test_get_batch_samples_returns_the_number_of_pairs(trainers):
    trainer = trainers[ExplicitTrainer]
    batches, pairs = trainer.get_batch_samples(iter([{"index": torch.arange(3)}, {"index": torch.arange(2)}]), 5, "cpu")
    assert len(batches) == 2  # an epoch may end within a step
    assert int(pairs) == 5


def test_epochs_reach_the_batch_sampler_of_a_loader_also_when_batches_are_skipped():
    """transformers calls `set_epoch` on the loader and, when it resumes, on the batch sampler inside the new one's."""
    batches = MicroBatches(8, None, batch_size=4, accumulation=2)
    loader = PairLoader(list(range(8)), batch_sampler=batches)
    loader.set_epoch(3)
    assert batches.epoch == 3
    skipped = skip_first_batches(loader, 1)
    assert skipped.batch_sampler.batch_sampler is batches
    assert list(skipped.batch_sampler) == list(batches)[1:]
    loop = inspect.getsource(Trainer)
    assert "train_dataloader.set_epoch(epoch)" in loop
    assert "underlying_sampler.set_epoch(epoch)" in loop


@pytest.mark.parametrize(("scaled", "expected"), [(True, 6.0), (False, 3.0)])
def test_a_loss_that_is_scaled_already_is_not_divided_again(trainers, monkeypatch, scaled, expected):
    """`loss_is_scaled_for_ga`: without it transformers would divide by the number of micro-batches, here 2."""
    trainer = trainers[GenerativeTrainer]
    weight = trainer.model.get_input_embeddings().weight
    monkeypatch.setattr(trainer, "loss_is_scaled_for_ga", scaled)
    monkeypatch.setattr(trainer, "compute_loss", lambda model, inputs, num_items_in_batch: 6.0 + 0 * weight.sum())
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 2, raising=False)
    assert float(trainer.training_step(trainer.model, {"x": torch.zeros(1)}, torch.tensor(2))) == expected
    trainer.model.zero_grad()


def test_fields_that_train_py_decides_cannot_be_set_in_a_recipe(monkeypatch, tmp_path):
    """Otherwise a recipe's value would be replaced silently."""
    from rmkit.training import preparation as module

    seen = {}

    def config(**options):
        seen.update(options)
        return SimpleNamespace(deepspeed_plugin=None, n_gpu=0)

    content = {
        "base": {"name": "x"},
        "reward_model": {"type": "explicit"},
        "data": {"train": {"name": "t", "path": "p"}},
        "output_dir": str(tmp_path),
    }
    free = module.training_arguments(Recipe.model_validate(content))
    for trainer in TRAINERS:
        fake = SimpleNamespace(config_class=config, config_defaults=trainer.config_defaults)
        monkeypatch.setattr(module, "trainer_class", lambda settings, fake=fake: fake)
        module.trainer_arguments(Recipe.model_validate(content), 1, **training_options(None))
    changed = {key for key, value in seen.items() if key not in free or free[key] != value}
    assert changed - {"activation_checkpointing"} <= (OWNED_FIELDS | REFUSED_FIELDS).keys()
    assert "gradient_accumulation_steps" in changed


# --- accelerate ----------------------------------------------------------------------------------------------------


def test_the_main_process_can_work_on_its_own():
    state = PartialState()
    state.num_processes, state.process_index = 4, 2
    try:
        with main_process_only():
            assert (PartialState().num_processes, PartialState().process_index) == (1, 0)
        assert (PartialState().num_processes, PartialState().process_index) == (4, 2)
    finally:
        state.num_processes, state.process_index = 1, 0


def test_the_launcher_can_be_called():
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    command = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "train.py", "r.yaml", "a=1"]
    parsed = launch_command_parser().parse_args([*command, "--overwrite"])
    assert parsed.training_script == "train.py"
    assert parsed.training_script_args == ["r.yaml", "a=1", "--overwrite"]
    assert callable(launch_command)
    assert "failures" in inspect.signature(ChildFailedError).parameters


def test_the_launcher_leaves_signals_to_rmkit(monkeypatch):
    """An attribute without an option of accelerate reaches torchrun, whose agent would handle SIGTERM too."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api

    passed = {}
    monkeypatch.setattr(run, "run", lambda arguments: passed.update(vars(arguments)))
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    parsed = launch_command_parser().parse_args([*options, "--main_process_port", "0", "train.py"])
    parsed.signals_to_handle = "SIGQUIT"
    launch_command(parsed)
    assert passed["signals_to_handle"] == "SIGQUIT"
    config, *_ = run.config_from_args(run.get_args_parser().parse_args(["--signals-to-handle", "SIGQUIT", "train.py"]))
    assert config.signals_to_handle == "SIGQUIT"
    assert api.logger.name == "torch.distributed.elastic.multiprocessing.api"


def test_the_launcher_exports_that_it_has_a_store():
    from torch.distributed.elastic.agent.server import local_elastic_agent

    assert '"TORCHELASTIC_USE_AGENT_STORE": str(use_agent_store)' in inspect.getsource(local_elastic_agent)


def test_accelerate_exports_these_variables(monkeypatch):
    """`rmkit.training.launch` recognises the launcher by them."""
    from accelerate.commands import launch
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    def exported(prepare, *options):
        plain = ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0"]
        parsed = launch.launch_command_parser().parse_args([*plain, *options, "train.py"])
        parsed, _, _ = launch._validate_launch_command(parsed)
        parsed.deepspeed_fields_from_accelerate_config = ""
        made = prepare(parsed)
        environment = made[1] if isinstance(made, tuple) else made
        return {name: value for name, value in environment.items() if name not in before}

    for name in ("OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch, "default_config_file", "none")
    before = {name for name in os.environ if not name.startswith("ACCELERATE_")}
    one = exported(prepare_simple_launcher_cmd_env, "--num_processes", "1", "--dynamo_backend", "eager")
    assert (one["ACCELERATE_MIXED_PRECISION"], one["ACCELERATE_DYNAMO_BACKEND"]) == ("no", "EAGER")
    assert one["OMP_NUM_THREADS"] == "1"
    assert "MASTER_ADDR" not in one
    assert "MASTER_ADDR" in exported(prepare_simple_launcher_cmd_env, "--num_processes", "2")
    several = exported(prepare_multi_gpu_env, "--multi_gpu", "--num_processes", "2")
    assert (several["ACCELERATE_MIXED_PRECISION"], several["OMP_NUM_THREADS"]) == ("no", "1")
    assert "ACCELERATE_USE_DEEPSPEED" not in several
    options = ["--use_deepspeed", "--zero_stage", "3", "--offload_param_device", "cpu", "--num_processes", "2"]
    sharded = exported(prepare_deepspeed_cmd_env, *options)
    assert (sharded["ACCELERATE_USE_DEEPSPEED"], sharded["ACCELERATE_DEEPSPEED_ZERO_STAGE"]) == ("true", "3")
    assert sharded["ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"] == "cpu"


def test_transformers_counts_gpus_under_this_name(monkeypatch, tmp_path):
    """The GPUs that one process sees; with several, transformers uses DataParallel and multiplies the batch size."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, bf16=False)
    assert (arguments.n_gpu, arguments.train_batch_size) == (4, 8)
    arguments._n_gpu = 1
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 2)


def test_transformers_holds_deepspeeds_configuration_under_this_name():
    from transformers.integrations import deepspeed

    assert deepspeed._hf_deepspeed_config_weak_ref is None
    deepspeed.unset_hf_deepspeed_config()
    assert deepspeed._hf_deepspeed_config_weak_ref is None


def test_deepspeed_lists_the_kernels_that_it_may_build():
    from deepspeed import ops

    assert "deepspeed_shm_comm" in ops.__compatible_ops__


# --- transformers and peft -----------------------------------------------------------------------------------------


def test_loading_reports_a_missing_head_and_missing_weights(models):
    options = {"output_loading_info": True, "use_safetensors": True}
    _, report = AutoModelForSequenceClassification.from_pretrained(models["llama"], num_labels=1, **options)
    assert set(report["missing_keys"]) == {"score.weight"}
    _, report = AutoModelForCausalLM.from_pretrained(models["llama"], **options)
    assert not report["missing_keys"]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_classifiers_keep_their_head_in_score_and_all_models_their_body_in_base_model(models, architecture):
    classifier = AutoModelForSequenceClassification.from_pretrained(models[architecture], num_labels=1)
    assert classifier.score.weight.shape == (1, classifier.config.hidden_size)
    assert classifier.score.bias is None
    model = AutoModelForCausalLM.from_pretrained(models[architecture])
    for each in (classifier, model):
        hidden = each.base_model(torch.arange(3)[None], use_cache=False).last_hidden_state
        assert hidden.shape == (1, 3, each.config.get_text_config().hidden_size)


def test_templates_can_be_given_a_macro_in_front_of_transformers_clock():
    tokenizer = tiny.tokenizer("qwen2")
    template = "{% macro strftime_now(_) %}never{% endmacro %}{{ strftime_now('%Y') }} {{ messages | length }}"
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=template, tokenize=False)
    assert rendered == "never 1"


def test_adapters_are_saved_without_embeddings_and_with_the_head(models, tmp_path):
    from peft import LoraConfig, TaskType, get_peft_model
    from safetensors.torch import load_file

    model = AutoModelForSequenceClassification.from_pretrained(models["qwen2"], num_labels=1)
    adapted = get_peft_model(
        model, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules="all-linear", modules_to_save=["score"])
    )
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    names = list(load_file(tmp_path / "adapter_model.safetensors"))
    assert any("score" in name for name in names)
    assert not any("embed" in name for name in names)
    with adapted.disable_adapter():
        pass


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_layers_are_given_a_mask_of_four_dimensions_as_it_is(architecture):
    """Shared rows say in an integer mask how they branch, and keep with it what they work out from it."""
    given = []

    def attention(module, query, key, value, attention_mask, **options):
        given.append(attention_mask)
        return query.transpose(1, 2), None

    AttentionInterface.register("noting", attention)
    AttentionMaskInterface.register("noting", sdpa_mask)
    model = AutoModelForCausalLM.from_config(tiny.config(architecture, 100))
    model.set_attn_implementation("noting")
    assert model.config._attn_implementation == "noting"
    mask = torch.tensor([[[[0, 3], [1, 2]]]])
    model(torch.arange(5)[None], attention_mask=mask, position_ids=torch.arange(5)[None])
    assert len(given) == 2
    assert all(each is mask for each in given)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_each_architectures_module_has_its_eager_attention(architecture):
    model = AutoModelForCausalLM.from_config(tiny.config(architecture, 100))
    assert callable(sys.modules[type(model).__module__].eager_attention_forward)


def test_an_adapter_is_two_linear_layers_and_a_factor_in_these_attributes():
    """rmkit.models.language_model calls the parts of an adapter on an unembedding one by one."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners import lora

    model = AutoModelForCausalLM.from_config(tiny.config("llama", 50))
    get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=["lm_head"], init_lora_weights=False))
    layer = model.get_output_embeddings()
    assert isinstance(layer, lora.Linear)
    assert (layer.active_adapters, layer.merged, layer.disable_adapters) == (["default"], False, False)
    assert (layer.lora_variant, layer.lora_bias) == ({}, {"default": False})
    hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    down, up = layer.lora_A["default"], layer.lora_B["default"]
    added = up(down(layer.lora_dropout["default"](hidden))) * layer.scaling["default"]
    torch.testing.assert_close(layer(hidden), layer.base_layer(hidden) + added)


def test_experts_are_called_as_one_by_default():
    """Else which of their modules are called would depend on the tokens."""
    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_local_experts=2
    )
    assert AutoModelForCausalLM.from_config(config).config._experts_implementation == "grouped_mm"


# --- what model folders hold (weights.py, adapters.py) ----------------------------------------------------------------


def test_transformers_loads_on_the_meta_device_from_shapes_alone(models):
    """`weights.check_weights`: the report of a loading without weights is that of the real one."""
    config = AutoConfig.from_pretrained(models["llama"])
    with torch.device("meta"):
        weights = {
            name: torch.empty(each.shape)
            for name, each in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
        weights["extra.weight"] = torch.empty(1)
        weights["model.norm.weight"] = torch.empty(31)
        del weights["lm_head.weight"]
    model, report = LlamaForCausalLM.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        device_map={"": "meta"},
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    assert {each.device.type for each in model.parameters()} == {"meta"}
    assert report["unexpected_keys"] == {"extra.weight"}
    assert report["missing_keys"] == {"lm_head.weight"}
    assert [(name, list(found), list(asked)) for name, found, asked in report["mismatched_keys"]] == [
        ("model.norm.weight", [31], [32])
    ]


def test_classes_say_which_weights_are_tied_and_which_may_be_left_over():
    """`weights.check_report`, `weights._check_tied`."""
    assert LlamaForCausalLM._tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
    assert all(isinstance(each, str) for each in DeepseekV3ForCausalLM._keys_to_ignore_on_load_unexpected)
    model = AutoModelForCausalLM.from_config(tiny.config("qwen2", 300))
    assert model.all_tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}


def test_peft_reports_what_it_loads_into_an_adapter_that_is_there(models, tmp_path):
    """`adapters.attach`; a weight that is written to has another version."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(models["qwen2"]), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    weights["base_model.model.extra.lora_A.weight"] = torch.ones(1)
    weights["base_model.model.model.norm.weight"] = torch.ones(32)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    before = {name: parameter._version for name, parameter in model.named_parameters()}
    report = model.load_adapter(str(tmp_path), "default", torch_device="cpu")
    assert report.unexpected_keys == ["base_model.model.extra.lora_A.weight"]
    assert report.missing_keys == []
    changed = {name for name, parameter in model.named_parameters() if parameter._version != before[name]}
    assert {name for name in changed if "lora_" not in name} == {"base_model.model.model.norm.weight"}
