"""Adapters as PEFT and TRL save them: scored with their head, on top of their base or merged into it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from rmkit import RmkitError, load_reward_model
from rmkit.config.recipe import Hub
from rmkit.hub.publication import public_origins

PAIRS = [("How do I bake bread?", "Mix flour and water."), ("why?", "No.")]
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(models):
    return models["qwen2"]


@pytest.fixture(scope="module")
def untied(base, tmp_path_factory):
    """The base with an untied unembedding."""
    folder = tmp_path_factory.mktemp("untied")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained_by_trl(base, tmp_path_factory):
    """The folder that TRL's RewardTrainer saves with peft_config."""
    folder = tmp_path_factory.mktemp("trl")
    turns = {"prompt": [{"role": "user", "content": "why?"}]} | {
        column: [{"role": "assistant", "content": text}] for column, text in (("chosen", "Yes."), ("rejected", "No."))
    }
    options = {"bf16": False, "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    trainer = RewardTrainer(
        model=str(base),
        args=RewardConfig(
            output_dir=str(folder / "run"),
            max_steps=2,
            learning_rate=1e-2,
            model_init_kwargs={"dtype": "float32"},
            **options,
        ),
        train_dataset=Dataset.from_list([turns] * 4),
        peft_config=LoraConfig(task_type="SEQ_CLS", **LORA),
    )
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return folder / "adapter"


def randomise(model, seed=1):
    """Make the adapter change outputs: lora_B is initialized to zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))


def save_adapter(base, folder, config, prepare=lambda model: None, **options):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    prepare(model)
    model = get_peft_model(model, config)
    randomise(model)
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    """A language model's LoRA, saved by PEFT."""
    return save_adapter(base, tmp_path / "adapter", LoraConfig(task_type="CAUSAL_LM", **LORA))


def sequences(scorer):
    return scorer.reward_model.encode(*zip(*PAIRS, strict=True))


def rewards(folder, *args, **options):
    return load_reward_model(str(folder), *args, **options).score(*zip(*PAIRS, strict=True))


def plain_log_probs(model, scorer):
    """ln pi(y|x) by plain transformers and PEFT."""
    found = []
    for sequence in sequences(scorer):
        ids = torch.tensor([sequence.ids])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
        found.append(log_probs.gather(-1, ids[0, 1:, None])[sequence.response_start - 1 :].sum().item())
    return torch.tensor(found)


def change_config(folder, **entries):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def change_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    changed = change(weights)
    save_file(weights if changed is None else changed, folder / WEIGHTS, metadata={"format": "pt"})


# --- scored as they are --------------------------------------------------------------------------------------------


def test_trl_reward_adapters_are_scored_with_their_head(base, trained_by_trl):
    scorer = load_reward_model(str(trained_by_trl))
    assert scorer.reward_model.settings.type == "explicit"
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    plain = PeftModel.from_pretrained(plain, str(trained_by_trl)).eval()
    plain.config.pad_token_id = 0
    with torch.no_grad():
        expected = [plain(torch.tensor([sequence.ids])).logits.item() for sequence in sequences(scorer)]
    assert scorer.score(*zip(*PAIRS, strict=True)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RmkitError, match="belongs to a classifier") as error:
        rewards(trained_by_trl, "generative")
    assert "--type explicit" in error.value.remedy
    rewards(trained_by_trl, "explicit")
    assert scorer.score(*zip(*PAIRS, strict=True)) == pytest.approx(rewards(trained_by_trl, dtype="bfloat16"), rel=0.1)


def test_a_language_models_adapter_is_implicit_or_generative(base, adapter):
    with pytest.raises(RmkitError, match="its reward model type is unknown"):
        rewards(adapter)
    scorer = load_reward_model(str(adapter), "implicit", beta=0.5)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    expected = plain_log_probs(model, scorer)
    with model.disable_adapter():
        expected = 0.5 * (expected - plain_log_probs(model, scorer))
    assert expected.abs().max() > 0.1
    assert scorer.score(*zip(*PAIRS, strict=True)) == pytest.approx(expected.tolist(), rel=1e-4)
    other = rewards(adapter, "implicit", beta=0.5, reference=str(base))
    assert other == pytest.approx(expected.tolist(), rel=1e-4)
    assert rewards(adapter, "implicit", beta=1.0, reference="none") == pytest.approx(
        plain_log_probs(model, scorer).tolist(), rel=1e-5
    )
    assert rewards(adapter, "generative") == pytest.approx(rewards(merged(adapter, base), "generative"), rel=1e-4)
    with pytest.raises(RmkitError, match="has no reward head"):
        rewards(adapter, "explicit")


def merged(adapter, base):
    """The adapter merged by PEFT, in a folder next to it."""
    folder = adapter.parent / "merged"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    model.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


METHODS = {
    "dora": LoraConfig(task_type="CAUSAL_LM", use_dora=True, **LORA),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(task_type="CAUSAL_LM", **LORA),
    "oft": OFTConfig(task_type="CAUSAL_LM", oft_block_size=4, target_modules=["q_proj"]),
    "ln": LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
    "no task": LoraConfig(**LORA),
    "lm_head": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "lm_head"]),
    "lm_head saved": LoraConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"], **LORA),
    "embeddings": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "embed_tokens"]),
    "embeddings saved": LoraConfig(task_type="CAUSAL_LM", modules_to_save=["embed_tokens"], **LORA),
    "tokens": LoraConfig(task_type="CAUSAL_LM", trainable_token_indices={"embed_tokens": [40, 41, 42]}, **LORA),
    "modules": LoraConfig(task_type="CAUSAL_LM", modules_to_save=["input_layernorm"], **LORA),
}


FAST = ("dora", "ia3", "lm_head", "tokens")


@pytest.mark.parametrize(
    "method", [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in METHODS]
)
def test_other_methods_score_as_their_merged_model(untied, tmp_path, method):
    base = untied
    folder = save_adapter(base, tmp_path / "adapter", METHODS[method])
    whole = rewards(merged(folder, base), "implicit", reference=str(base), beta=1.0)
    assert rewards(folder, "implicit", beta=1.0) == pytest.approx(whole, rel=1e-3, abs=1e-3)
    assert max(abs(whole)) > 0.01


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PROMPT_TUNING"),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PREFIX_TUNING"),
        (LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6], **LORA), "aLoRA"),
    ],
)
def test_methods_that_work_on_prompts_are_refused_by_name(base, tmp_path, config, method):
    folder = save_adapter(base, tmp_path / "adapter", config)
    with pytest.raises(RmkitError, match=f"PEFT's method {method}") as error:
        rewards(folder, "generative")
    assert "LoRA" in error.value.remedy


def test_an_unknown_unembedding_is_refused(base, tmp_path):
    tokens = LoraConfig(task_type="CAUSAL_LM", trainable_token_indices={"embed_tokens": [40, 41, 42]}, **LORA)
    folder = save_adapter(base, tmp_path / "adapter", tokens)
    with pytest.raises(RmkitError, match="replaces the unembedding by TrainableTokensWrapper"):
        rewards(folder, "implicit", beta=1.0)
    rewards(merged(folder, base), "implicit", beta=1.0, reference=str(base))  # the remedy


# --- as a base -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytest.param("explicit", marks=pytest.mark.slow), "implicit"])
def test_an_adapter_is_a_base_and_a_reference(base, adapter, run, kind):
    """Training starts from the merged model; the run is scored, and its reference found, from the same folder."""
    start = run(kind, base={"name": str(adapter)}, training={"max_steps": 1})
    other = run(kind, "other", base={"name": str(merged(adapter, base))}, training={"max_steps": 1})
    assert rewards(start.model) == pytest.approx(rewards(other.model), rel=1e-3, abs=1e-4)
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj"]}
    again = run(kind, "lora", base={"name": str(adapter)}, training={"max_steps": 1}, lora=lora)
    assert abs(rewards(again.model)).max() > 0


def test_a_run_records_the_base_of_an_adapter(base, adapter, run, tmp_path):
    below = shutil.copytree(base, tmp_path / "below")
    change_config(adapter, base_model_name_or_path=str(below))
    start = run("implicit", base={"name": str(adapter)}, training={"max_steps": 1}).model
    expected = rewards(start)
    below = below.rename(tmp_path / "moved")
    with pytest.raises(RmkitError, match=r"base of the adapter .* is missing") as error:
        rewards(start)
    assert "Set base_model_name_or_path in" in error.value.remedy
    change_config(adapter, base_model_name_or_path=str(below))
    assert (rewards(start) == expected).all()
    weights = load_file(below / "model.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in weights.items()}, below / "model.safetensors", {"format": "pt"})
    with pytest.raises(RmkitError, match=r"is not the base that .* Changed: base/model.safetensors\."):
        rewards(start)
    assert (rewards(start, verify=False) != expected).all()
    save_file(weights, below / "model.safetensors", {"format": "pt"})  # "put that one back"
    assert (rewards(start) == expected).all()


def test_chained_runs_move_together(base, run, tmp_path):
    shutil.copytree(base, tmp_path / "below")
    options = {"lora": {"r": 2, "target_modules": ["q_proj"]}, "training": {"max_steps": 1, "learning_rate": 1e-1}}
    first = run("implicit", "first", base={"name": str(tmp_path / "below")}, **options)
    second = run("implicit", "second", base={"name": str(first.model)}, **options)
    expected = rewards(second.model)
    (tmp_path / "elsewhere").mkdir()
    for name in ("below", "first", "second"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert (rewards(tmp_path / "elsewhere" / "second" / "model") == expected).all()


@pytest.mark.parametrize("start", ["olora", pytest.param("pissa", marks=pytest.mark.slow)])
def test_a_base_that_initialization_changes_is_not_the_reference(untied, tmp_path, start):
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=start, **LORA)
    folder = save_adapter(untied, tmp_path / "adapter", config)
    with pytest.raises(RmkitError, match="changes weights of its base") as error:
        rewards(folder, "implicit", beta=1.0)
    assert error.value.remedy == f"Give --reference {untied}."
    scorer = load_reward_model(str(folder), "implicit", beta=1.0, reference=str(untied))
    plain = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32), str(folder))
    expected = plain_log_probs(model.eval(), scorer) - plain_log_probs(plain, scorer)
    assert scorer.score(*zip(*PAIRS, strict=True)) == pytest.approx(expected.tolist(), abs=1e-3)


def test_random_initialization_from_the_base_is_refused(untied, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights="pissa_niter_4", **LORA))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(RmkitError, match="initialized by pissa_niter_4, which changes the base at random") as error:
        rewards(tmp_path / "adapter", "generative")
    assert "merge_and_unload" in error.value.remedy
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(untied).save_pretrained(tmp_path / "merged")
    rewards(tmp_path / "merged", "generative")


def test_a_published_adapter_is_a_base(base, run):
    """Its adapter_config.json does not name a base; its reward_model.json does."""
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj"]}
    folder = run("implicit", lora=lora, training={"max_steps": 1}).model
    expected = rewards(folder, "generative")
    change_config(folder, base_model_name_or_path=None)
    record = json.loads((folder / "reward_model.json").read_text())
    (folder / "reward_model.json").write_text(json.dumps(record | {"base": {"name": "./base", "revision": None}}))
    shutil.copytree(base, folder / "base")
    assert (rewards(folder, "generative") == expected).all()
    start = run("generative", "next", base={"name": str(folder)}, training={"max_steps": 1, "learning_rate": 1e-12})
    assert rewards(start.model) == pytest.approx(expected, rel=1e-4)


def test_training_continues_from_a_trl_adapter_with_its_head(trained_by_trl, run):
    start = run("explicit", base={"name": str(trained_by_trl)}, training={"max_steps": 1, "learning_rate": 1e-12})
    assert rewards(start.model) == pytest.approx(rewards(trained_by_trl), rel=1e-4)


def test_chained_adapters(base, adapter, tmp_path):
    first = merged(adapter, base)
    second = save_adapter(first, tmp_path / "second", LoraConfig(task_type="CAUSAL_LM", **LORA))
    expected = rewards(second, "generative")
    change_config(second, base_model_name_or_path=str(adapter))
    assert rewards(second, "generative") == pytest.approx(expected, rel=1e-4)
    change_config(adapter, base_model_name_or_path=str(second))
    with pytest.raises(RmkitError, match="is its own base"):
        rewards(second, "generative")


@pytest.mark.parametrize(
    "where", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}], ids=str
)
def test_embeddings_that_cannot_be_merged(base, run, tmp_path, where):
    """The base ties them, and the adapter changes one of the two."""
    lora = LoraConfig(task_type="CAUSAL_LM", **({"r": 4, "target_modules": ["q_proj"]} | where))
    folder = save_adapter(base, tmp_path / "adapter", lora)
    with pytest.raises(RmkitError, match="only one of the two embeddings that its base ties"):
        run("implicit", base={"name": str(folder)})
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    scorer = load_reward_model(str(folder), "implicit", beta=1.0, reference="none")  # the remedy
    expected = plain_log_probs(model, scorer).tolist()
    assert scorer.score(*zip(*PAIRS, strict=True)) == pytest.approx(expected, rel=1e-4)


def test_an_adapter_is_not_published_next_to_a_model(adapter):
    record = {"base": {"name": str(adapter), "revision": None}, "adapter": True, "reward_model": {"type": "explicit"}}
    with pytest.raises(RmkitError, match="is an adapter, and its own base would be missing"):
        public_origins(record, {"base": {"build": None}}, Hub(push="end", repo_id="someone/rm", base="upload"))
    hub = Hub(push="end", repo_id="someone/rm", base="someone/adapter")  # the remedy
    assert public_origins(record, {"base": {"build": None}}, hub)[0].hub_id == "someone/adapter"


# --- what is in the file is what is loaded -------------------------------------------------------------------------


def renamed(weights):
    return {name.replace(".q_proj.", ".query."): tensor for name, tensor in weights.items()}


def prefixed(weights):
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def cut(weights):
    weights.pop("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight")


def misshapen(weights):
    weights["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"] = torch.ones(16, 5)


def added(weights):
    weights["base_model.model.model.layers.7.self_attn.v_proj.lora_B.weight"] = torch.ones(16, 4)


def not_a_number(weights):
    weights["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (renamed, "lacks weights: .*q_proj"),
        (prefixed, "lacks weights: "),
        (cut, "lacks weights: .*layers.1.self_attn.v_proj.lora_B"),
        (misshapen, "cannot be put on its base"),
        (added, "have no place in its base .*layers.7"),
        (not_a_number, "layers.1.self_attn.v_proj.lora_B.weight has entries that are NaN"),
    ],
)
def test_adapters_that_load_only_in_part_are_refused(adapter, run, change, cause):
    change_weights(adapter, change)
    with pytest.raises(RmkitError, match=cause):
        rewards(adapter, "implicit", beta=1.0)
    with pytest.raises(RmkitError, match=cause):
        run(base={"name": str(adapter)})


def test_a_missing_head_is_refused(trained_by_trl, tmp_path):
    folder = shutil.copytree(trained_by_trl, tmp_path / "adapter")
    change_weights(folder, lambda weights: {name: each for name, each in weights.items() if "score" not in name})
    with pytest.raises(RmkitError, match=r"lacks weights: base_model.model.score.weight|has no reward head"):
        rewards(folder, "explicit")


def test_rmkits_own_adapters_are_checked_too(run, tmp_path):
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj"]}
    folder = run("implicit", lora=lora, training={"max_steps": 1}).model
    before = rewards(folder)
    change_weights(folder, renamed)
    with pytest.raises(RmkitError, match="lacks weights"):
        rewards(folder)
    change_weights(
        folder, lambda weights: {name.replace(".query.", ".q_proj."): each for name, each in weights.items()}
    )
    assert (rewards(folder) == before).all()


# --- where it cannot be --------------------------------------------------------------------------------------------


def test_a_missing_base_is_named(adapter, base, tmp_path, monkeypatch):
    for missing in ("/nowhere/base", "./base", "someone/base", None, ""):
        change_config(adapter, base_model_name_or_path=missing)
        with pytest.raises(RmkitError) as error:
            rewards(adapter, "generative")
        assert (missing or str(adapter)) in error.value.cause
    assert "base_model_name_or_path" in error.value.remedy
    shutil.copytree(base, adapter / "base")  # a relative path: from the adapter
    change_config(adapter, base_model_name_or_path="./base")
    rewards(adapter, "generative")
    change_config(adapter, base_model_name_or_path=str(base))  # the remedy
    rewards(adapter, "generative")


def test_pickles_are_not_read(adapter):
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(RmkitError, match=f"has no {WEIGHTS}"):
        rewards(adapter, "generative")


def test_a_whole_model_and_an_adapter_in_one_folder(adapter, base, tmp_path):
    both = shutil.copytree(base, tmp_path / "both")
    for name in ("adapter_config.json", WEIGHTS):
        shutil.copy(adapter / name, both)
    with pytest.raises(RmkitError, match="contains both a whole model and an adapter"):
        rewards(both, "generative")
    own = tmp_path / "own"  # the remedy
    own.mkdir()
    for name in ("adapter_config.json", WEIGHTS):
        (both / name).rename(own / name)
    assert (rewards(own, "generative") == rewards(adapter, "generative")).all()
    assert (rewards(both, "generative") == rewards(base, "generative")).all()


# --- tokens --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_tokens(base, tmp_path):
    """Creates adapters whose tokenizer has more tokens than the base has rows."""

    def make(name, prepare=lambda model: None, **options):
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(["<a>", "<b>"])

        def grow(model):
            torch.manual_seed(3)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            prepare(model)

        folder = save_adapter(base, tmp_path / name, LoraConfig(task_type="CAUSAL_LM", **LORA), grow, **options)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_embeddings_that_are_saved_with_an_adapter(with_tokens, base):
    """Rows of added tokens come from the adapter; with it disabled, the base's rows are unchanged."""
    folder = with_tokens("adapter", save_embedding_layers=True)
    scorer = load_reward_model(str(folder), "implicit", beta=1.0)
    saved = load_file(folder / WEIGHTS)["base_model.model.model.embed_tokens.weight"]
    weight = scorer.checkpoint.model.get_input_embeddings().weight
    assert torch.equal(weight[: len(saved)], saved)
    prompts, responses = ["<a> why?"], ["<b> No."]
    alone = load_reward_model(str(folder), "implicit", beta=1.0, reference="none").score(prompts, responses)
    assert scorer.score(prompts, responses) != pytest.approx(alone)

    def train(model):
        with torch.no_grad():
            model.get_input_embeddings().weight[0] += 1

    folder = with_tokens("trained", train, save_embedding_layers=True)
    with pytest.raises(RmkitError, match=r"changes weights of its base .*embed_tokens") as error:
        rewards(folder, "implicit", beta=1.0)
    assert error.value.remedy == f"Give --reference {base}."
    rewards(folder, "implicit", beta=1.0, reference=str(base))


def test_unsaved_rows_of_added_tokens_are_refused(with_tokens, run):
    folder = with_tokens("adapter", save_embedding_layers=False)
    with pytest.raises(RmkitError, match="tokens, but its base has rows for") as error:
        rewards(folder, "generative")
    assert "save_embedding_layers=True" in error.value.remedy
    with pytest.raises(RmkitError, match="tokens, but its base has rows for"):
        run(base={"name": str(folder)})
    rewards(with_tokens("remedy", save_embedding_layers=True), "generative")
