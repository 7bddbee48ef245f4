"""All precisions of recipes train, score, save and reload, for every type."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from tiny import TYPES

from rmkit import RmkitError, load_reward_model
from rmkit.data.preferences import load_preferences
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.reward_models import make_reward_model
from rmkit.reward_models.loading import load, load_model
from rmkit.reward_models.metadata import ModelMetadata
from rmkit.reward_models.origins import ModelRef
from rmkit.reward_models.saving import save
from rmkit.training.reload_check import check_outputs, check_weights

pytestmark = pytest.mark.smoke

PRECISIONS = {
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "autocast": ("float32", True),
    "bfloat16_autocast": ("bfloat16", True),
}
ADAPTERS = {"full": {}, "lora": {"lora": {"r": 4, "alpha": 8}}}
ALL = list(itertools.product(PRECISIONS, TYPES, ADAPTERS, ["shared", "padded"], ["qwen2", "gpt_neox"]))
FAST = {
    ("autocast", "explicit", "full", "shared", "qwen2"),
    ("autocast", "mean", "lora", "padded", "gpt_neox"),
    ("autocast", "implicit", "full", "shared", "gpt_neox"),
    ("autocast", "implicit", "lora", "shared", "qwen2"),
    ("autocast", "generative_lambda", "full", "shared", "qwen2"),
    ("bfloat16", "implicit", "lora", "padded", "qwen2"),
    ("bfloat16_autocast", "no_reference", "full", "shared", "gpt_neox"),
    ("bfloat16_autocast", "generative", "lora", "shared", "gpt_neox"),
}

FEWER = {"float32", "bfloat16", "explicit", "implicit", "generative", *ADAPTERS}


def precise(name, **training):
    dtype, bf16 = PRECISIONS[name]
    return {"base": {"dtype": dtype}, "training": {"bf16": bf16} | training}


def rewards(directory, state="final"):
    return pd.read_parquet(directory.rewards("test", state))[["chosen_reward", "rejected_reward"]].to_numpy()


@pytest.mark.parametrize(
    ("precision", "type_name", "adapter", "layout", "architecture"),
    [pytest.param(*each, marks=() if each in FAST else pytest.mark.slow) for each in ALL],
)
def test_a_run_reloads_to_its_final_rewards(run, pairs, precision, type_name, adapter, layout, architecture):
    """Bit for bit on one CPU process; an untrained implicit model with a reference rewards everything 0."""
    options = precise(precision, learning_rate=1e-2) | ADAPTERS[adapter]
    directory = run(type_name, architecture=architecture, layout=layout, **options)
    again = load_reward_model(str(directory.model)).score_pairs(load_preferences("test.jsonl", root=pairs), 16)
    assert (again == rewards(directory)).all()
    assert not (again == rewards(directory, "initial")).all()
    if type_name == "implicit":
        assert not rewards(directory, "initial").any()


def changed(weights, name=None):
    """One weight of the last layer (of its adapters, if there are any), or the one named, larger by one percent."""
    inner = [each for each in weights if ".layers.1." in each and weights[each].dim() == 2]
    name = name or next((each for each in inner if "lora_B" in each), inner[-1])
    return dict(weights) | {name: weights[name] * 1.01}


@pytest.mark.parametrize(
    ("precision", "type_name", "adapter"),
    [
        pytest.param(*each, marks=() if FEWER.issuperset(each) else pytest.mark.slow)
        for each in itertools.product(PRECISIONS, TYPES, ADAPTERS)
    ],
)
def test_a_saved_weight_that_is_off_by_one_percent_is_seen(models, tmp_path, precision, type_name, adapter):
    """Weights are compared number by number, so on several processes and on a GPU as well."""
    tokenizer, _ = load_tokenizer(models["qwen2"])
    dtype, autocast = PRECISIONS[precision]
    record = ModelMetadata(
        reward_model=TYPES[type_name],
        base=ModelRef(name=str(models["qwen2"])),
        adapter=adapter == "lora",
        dtype=dtype,
        autocast=autocast,
    )
    its = make_reward_model(record.reward_model, ChatEncoder(tokenizer))
    torch.manual_seed(0)
    model = load_model(its, record.base, dtype=dtype)
    if record.adapter:
        heads = ["score"] if its.head else None
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", modules_to_save=heads))
        for name, each in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(each)
    weights = model.state_dict()
    save(tmp_path / "model", model, weights, its, record)
    check_weights("model", weights, load(str(tmp_path / "model"), policy_only=True).model.state_dict())
    others = [changed(weights)] + [changed(weights, each) for each in weights if "score" in each and "orig" not in each]
    for number, other in enumerate(others):
        save(tmp_path / str(number), model, other, its, record)
        loaded = load(str(tmp_path / str(number)), policy_only=True).model.state_dict()
        with pytest.raises(RmkitError, match="is not the one that was trained"):
            check_weights("model", weights, loaded)


@pytest.mark.parametrize(
    ("precision", "type_name"),
    [("autocast", "implicit"), ("bfloat16", "explicit"), ("bfloat16_autocast", "generative"), ("float32", "implicit")],
)
def test_weights_that_are_gathered_wrongly_are_seen_in_outputs(run, tmp_path, monkeypatch, precision, type_name):
    """The file contains the gathered weights; on one CPU process, outputs must be bit-identical."""
    original = Accelerator.get_state_dict
    monkeypatch.setattr(Accelerator, "get_state_dict", lambda *args, **options: changed(original(*args, **options)))
    with pytest.raises(RmkitError, match=r"Reloading .* changes its outputs") as error:
        run(type_name, **precise(precision))
    assert not (tmp_path / "run" / "run.json").exists()
    assert "recipe.yaml" in error.value.remedy
    assert (tmp_path / "run" / "recipe.yaml").exists()


def test_outputs_are_compared_token_by_token():
    """Opposite changes of two tokens do not cancel; noise within the tolerance is accepted."""
    live = torch.full((300, 1), -2.0, dtype=torch.float64)
    other = live.clone()
    other[::2] += 0.3
    other[1::2] -= 0.3
    check_outputs("model", live.sum(0), other.sum(0), 5e-2)  # the control arm: sums
    with pytest.raises(RmkitError, match=r"by 0.3 on average \(at most 0.3\)"):
        check_outputs("model", live, other, 5e-2)
    check_outputs("model", live, live + 0.05, 5e-2)
    check_outputs("model", live, live.clone(), 0.0)
    for wrong in (live + 1e-12, live * torch.nan):
        with pytest.raises(RmkitError):
            check_outputs("model", live, wrong, 0.0)
