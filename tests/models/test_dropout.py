"""Dropout is off for every type and architecture unless the recipe enables it; adapters keep theirs."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rmkit import RmkitError
from rmkit.config.recipe import load_recipe
from rmkit.models.dropout import own_dropout, turn_off_dropout
from rmkit.models.language_model import apply_head
from rmkit.training.pair_trainer import PairTrainerMixin

pytestmark = pytest.mark.smoke

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
NOISE = {
    "bloom": ["attention_dropout", "hidden_dropout"],
    "falcon": ["attention_dropout", "hidden_dropout"],  # read from the configuration in every forward pass
    "gemma2": ["attention_dropout"],
    "gpt2": ["attn_pdrop", "embd_pdrop", "resid_pdrop"],
    "gpt_neo": ["attention_dropout", "embed_dropout", "resid_dropout"],
    "gpt_neox": ["attention_dropout", "hidden_dropout"],
    "llama": ["attention_dropout"],
    "mixtral": ["attention_dropout", "router_jitter_noise"],
    "opt": ["attention_dropout", "dropout", "layerdrop"],
    "persimmon": ["attention_dropout", "hidden_dropout"],
    "phi3": ["attention_dropout", "resid_pdrop"],
    "qwen2": ["attention_dropout"],
}


def noisy(architecture, names):
    own = {"gpt_neo": {"attention_types": [[["global"], 2]]}, "falcon": {"parallel_attn": False}}
    config = AutoConfig.for_model(architecture, **SMALL, **own.get(architecture, {}), **dict.fromkeys(names, 0.5))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.train()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 19)[None]).logits


@pytest.mark.parametrize(("architecture", "name"), [(each, name) for each, names in NOISE.items() for name in names])
def test_two_training_passes_agree_whatever_the_configuration(architecture, name):
    model = noisy(architecture, [name])
    assert len({logits(model).sum().item() for _ in range(4)}) > 1  # the control: there is something to turn off
    evaluated = logits(model.eval())
    values = turn_off_dropout(model.train())
    assert torch.equal(logits(model), logits(model))
    assert torch.equal(logits(model.eval()), evaluated)
    with own_dropout(values):
        assert getattr(model.config, name) == 0.5
    assert torch.equal(logits(model.train()), evaluated)


@pytest.mark.slow
def test_nothing_is_left_active_in_any_architecture_that_can_be_built_small():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    built = 0
    for architecture in sorted(set(CAUSAL) - {"phimoe"}):
        try:
            config = AutoConfig.for_model(architecture)
            for holder in {id(each): each for each in (config, config.get_text_config())}.values():
                names = [each for each in vars(holder) if any(part in each for part in ("dropout", "pdrop", "jitter"))]
                for name in names:
                    if isinstance(getattr(holder, name), float):
                        setattr(holder, name, 0.5)
                for name in set(SMALL) & set(vars(holder)):
                    setattr(holder, name, SMALL[name])
                holder.is_decoder = True
            with torch.device("meta"):
                size = sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())
            if size > 3_000_000:
                continue
            model = AutoModelForCausalLM.from_config(config).float().train()
            logits(model)
        except Exception:
            continue  # needs other sizes or packages: not a question of dropout
        turn_off_dropout(model)
        built += 1
        assert torch.equal(logits(model), logits(model)), architecture
    assert built > 40


def test_a_model_that_samples_experts_is_refused_unless_dropout_is_enabled(run, models, tmp_path):
    folder = tmp_path / "phimoe"
    shutil.copytree(models["llama"], folder)
    config = AutoConfig.for_model("phimoe", **SMALL | {"vocab_size": 420})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    base = {"name": str(folder), "date_string": "26 Jul 2024"}
    with pytest.raises(RmkitError, match="samples its experts") as error:
        run("explicit", base=base)
    assert "base.dropout: true" in error.value.remedy
    assert run("explicit", base=base | {"dropout": True}).read()["training"]["steps"] == 3


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_dropout(models, tmp_path):
    """A copy of a tiny model with dropout 0.5 everywhere in its configuration."""

    def make(architecture):
        folder = tmp_path / f"{architecture}_dropout"
        shutil.copytree(models[architecture], folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"attention_dropout": 0.5} | ({"hidden_dropout": 0.5} if architecture == "gpt_neox" else {})
        (folder / "config.json").write_text(json.dumps(config))
        return {"name": str(folder)}

    return make


@pytest.fixture
def passes(monkeypatch):
    """The outputs of three forward passes over the pairs of each step: two in training mode, one in evaluation mode."""
    seen = []
    original = PairTrainerMixin.compute_loss

    def noting(self, model, inputs, *rest, **options):
        with torch.no_grad():
            train, again = (apply_head(model, self.reward_model.outputs, inputs) for _ in range(2))
            evaluated = apply_head(model.eval(), self.reward_model.outputs, inputs)
        model.train()
        seen.append((train, again, evaluated))
        return original(self, model, inputs, *rest, **options)

    monkeypatch.setattr(PairTrainerMixin, "compute_loss", noting)
    return seen


TRAINING = {"batch_size": 24, "per_device_train_batch_size": 24, "logging_steps": 1, "learning_rate": 1e-2}


def test_the_loss_of_an_untrained_implicit_model_is_ln_2(run, with_dropout):
    directory = run("implicit", base=with_dropout("qwen2"), training=TRAINING)
    assert directory.read()["training"]["log"][0]["pair_loss"] == pytest.approx(math.log(2), abs=1e-6)
    config = json.loads((directory.model / "config.json").read_text())
    assert config["attention_dropout"] == 0.5  # what whoever trains it next expects


@pytest.mark.parametrize("kind", ["explicit", "implicit", "generative"])
def test_the_bases_dropout_is_off_and_the_adapters_is_on_in_training_only(run, with_dropout, passes, kind):
    training = TRAINING | {"num_train_epochs": 2}
    run(kind, base=with_dropout("gpt_neox"), lora={"r": 4, "dropout": 0.5}, training=training)
    (train, again, evaluated), (later, other, _) = passes
    assert torch.equal(train, again)  # new adapters add nothing, so only the base's dropout could differ
    torch.testing.assert_close(train, evaluated)
    assert not torch.equal(later, other)


@pytest.mark.parametrize("kind", ["explicit", "implicit", "generative"])
def test_dropout_is_on_for_every_type_if_the_recipe_enables_it(run, with_dropout, passes, kind):
    run(kind, base=with_dropout("gpt_neox") | {"dropout": True}, training=TRAINING)
    ((train, again, _),) = passes
    assert not torch.equal(train, again)


def test_trls_switch_names_rmkits_own(models, tmp_path):
    content = {
        "base": {"name": "x"},
        "reward_model": {"type": "explicit"},
        "data": {"train": {"name": "t", "path": "t.jsonl"}},
        "training": {"disable_dropout": True},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    with pytest.raises(RmkitError, match=r"training\.disable_dropout is decided by rmkit") as error:
        load_recipe(tmp_path / "recipe.yaml")
    assert error.value.remedy == "Use base.dropout instead."
    content |= {"base": {"name": "x", "dropout": False}, "training": {}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    assert load_recipe(tmp_path / "recipe.yaml").base.dropout is False
