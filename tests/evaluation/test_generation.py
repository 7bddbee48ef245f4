"""Generation for the Hamiltonian task: samples, verification, likelihoods and the command."""

from __future__ import annotations

import json
import re
import shutil

import independent
import networkx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import typer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)
from typer.testing import CliRunner

from rmkit import RmkitError, load_reward_model
from rmkit.commands.generate import generate as command
from rmkit.config.recipe import load_recipe
from rmkit.data.sources.hamiltonian import is_hamiltonian_cycle
from rmkit.evaluation.generation import GenerationSettings, generate, likelihoods, verify_samples
from rmkit.train import train

PROMPTS = ["How do I bake bread?", "why?", "The quick brown fox jumps over the lazy dog, and 12 + 30 = 42; why?"]
SQUARE = (
    "Vertices: [sep]0[sep]1[sep]2[sep]3\nEdges: [sep]1[edge_sep]0[sep]1[edge_sep]2[sep]3[edge_sep]2[sep]0[edge_sep]3"
)


@pytest.fixture(scope="module")
def scorer(models):
    return load_reward_model(str(models["qwen2"]), "implicit", reference="none", beta=1.0)


def test_samples_follow_the_model_s_own_distribution(models, scorer):
    """Temperature 1 and the whole vocabulary, whatever the model's generation_config says."""
    number = 1500
    scorer.checkpoint.model.generation_config.top_k = 1
    scorer.checkpoint.model.generation_config.temperature = 0.1
    settings = GenerationSettings(samples=number, max_new_tokens=1)
    (texts,) = generate(scorer, PROMPTS[:1], settings, batch_size=500)
    assert len(texts) == number
    tokenizer = AutoTokenizer.from_pretrained(models["qwen2"])
    before, _ = independent.texts(tokenizer, PROMPTS[0], "x", None)
    model = AutoModelForCausalLM.from_pretrained(models["qwen2"], dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([independent.ids(tokenizer, before)])).logits[0, -1]
    decoded = tokenizer.batch_decode([[each] for each in range(len(logits))], skip_special_tokens=True)
    for temperature, fits in ((1.0, True), (0.5, False)):  # the second is the control: it must not fit
        expected: dict[str, float] = {}
        for text, probability in zip(decoded, torch.softmax(logits / temperature, -1).tolist(), strict=True):
            expected[text] = expected.get(text, 0.0) + probability
        likely = sorted(expected, key=expected.__getitem__)[-5:]
        mass = sum(expected[text] for text in likely)
        error = np.sqrt(mass * (1 - mass) / number)
        assert (abs(sum(text in likely for text in texts) / number - mass) < 4 * error) == fits


def test_batches_and_padding_change_nothing(scorer):
    """Nearly greedy, so that prompts of different lengths, padded together, must give what each gives alone."""
    settings = GenerationSettings(max_new_tokens=8, temperature=1e-4)
    together = generate(scorer, PROMPTS, settings, batch_size=8)
    assert together == [generate(scorer, [prompt], settings)[0] for prompt in PROMPTS]
    assert len({text for (text,) in together}) > 1
    assert "forward" in vars(scorer.checkpoint.model)  # bound again, for scoring


def test_generation_respects_position_embeddings(tmp_path):
    tokenizer = tiny.tokenizer("qwen2")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 60, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = load_reward_model(str(tmp_path), "implicit", reference="none", beta=1.0)
    with pytest.raises(RmkitError, match="position embeddings for 60") as error:
        generate(scorer, ["why?"], GenerationSettings(max_new_tokens=60))
    most = int(re.fullmatch(r"Give --max-new-tokens (\d+).", error.value.remedy)[1])
    assert 30 < most < 60
    generate(scorer, ["why?"], GenerationSettings(samples=20, max_new_tokens=most))


def test_generation_is_deterministic_for_a_seed(scorer):
    settings = GenerationSettings(samples=2, max_new_tokens=6)
    first = generate(scorer, PROMPTS, settings)
    assert first == generate(scorer, PROMPTS, settings)
    assert first != generate(scorer, PROMPTS, settings.model_copy(update={"seed": 1}))
    assert [len(texts) for texts in first] == [2, 2, 2]


def test_a_response_ends_at_the_end_of_turn(models, tmp_path, monkeypatch):
    """A model that always writes the end-of-turn token writes it once, not 50 times."""
    model = AutoModelForCausalLM.from_pretrained(models["gpt_neox"])
    tokenizer = AutoTokenizer.from_pretrained(models["gpt_neox"])
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight.zero_()  # the hidden state is the bias, whatever was read
        model.gpt_neox.final_layer_norm.bias.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = 5.0
    model.save_pretrained(tmp_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    scorer = load_reward_model(str(tmp_path), "implicit", reference="none", beta=1.0)
    written = []
    own = scorer.checkpoint.model.generate
    monkeypatch.setattr(
        scorer.checkpoint.model, "generate", lambda **inputs: written.append(own(**inputs)) or written[-1]
    )
    assert generate(scorer, ["bread"], GenerationSettings(samples=3, max_new_tokens=50)) == [["", "", ""]]
    (before,) = scorer.reward_model.encoder.response_sequences(["bread"], ["x"])
    assert written[0].shape == (3, before.response_start + 1)


def test_explicit_models_cannot_generate(models, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(models["qwen2"], num_labels=1)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(models["qwen2"]).save_pretrained(tmp_path)
    with pytest.raises(RmkitError, match="cannot generate"):
        generate(load_reward_model(str(tmp_path)), PROMPTS, GenerationSettings())


def test_the_share_of_correct_responses():
    """Of two prompts with two responses each one of four is a cycle: 1/4, and 1/2 of the prompts have one."""
    generated = [["0[sep]1[sep]3[sep]2", "2[sep]1[sep]0[sep]3"], ["1[sep]2[sep]3", "no idea"]]
    found = verify_samples([SQUARE] * 2, ["0[sep]1[sep]2[sep]3"] * 2, generated, is_hamiltonian_cycle)
    assert (found["prompts"], found["correct"], found["prompts_with_a_correct_one"]) == (2, 0.25, 0.5)
    assert found["responses"][0]["correct"] == [False, True]
    assert found["responses"][1] == {
        "prompt": SQUARE,
        "chosen": "0[sep]1[sep]2[sep]3",
        "generated": ["1[sep]2[sep]3", "no idea"],
        "correct": [False, False],
    }


def test_likelihoods_are_those_of_theorem_1(models):
    place = {"policy": str(models["qwen2"]), "reference": str(models["qwen2"])}
    chosen, rejected = ["Bake it.", "Yes", "No"], ["Wait. Bake", "fox", "lazy dog"]
    scorer = load_reward_model(place["policy"], "implicit", reference="none", beta=0.5)
    alone = likelihoods(scorer, PROMPTS, chosen, rejected, batch_size=2)
    good, bad = (
        np.array(independent.log_probs(place["policy"], place["policy"], list(zip(PROMPTS, each, strict=True))))
        for each in (chosen, rejected)
    )
    assert alone == {"chosen": pytest.approx(good.mean(), abs=1e-3), "rejected": pytest.approx(bad.mean(), abs=1e-3)}
    assert likelihoods(load_reward_model(place["policy"], "generative"), PROMPTS, chosen, rejected) is None


# --- on a run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """An IM-RM on graphs of five vertices, a few steps long."""
    folder = tmp_path_factory.mktemp("hamiltonian")
    graphs = "{name: hamiltonian, vertices: 5, edge_probability: 0.3, train: 8, test: 4}"
    recipe = load_recipe(
        "recipes/pythia1b_hamiltonian.yaml",
        [
            f"base.name={models['gpt_neox']}",
            f"data.root={folder}",
            f"data.train.source={graphs}",
            f"data.evaluation.0.source={graphs}",
            "training={num_train_epochs: 2, batch_size: 4, per_device_train_batch_size: 4, learning_rate: 1e-3}",
            "distributed=null",
            f"output_dir={folder / 'run'}",
        ],
    )
    return train(recipe)


def run_command(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.mark.smoke
def test_the_command(run, models):
    options = ("--samples", 3, "--max-new-tokens", 12)
    result = run_command(run.path, *options)
    assert result.exit_code == 0, result.output
    contents = {name: json.loads((run.path / "generation" / f"{name}.json").read_text()) for name in ("train", "test")}
    assert {name: each["prompts"] for name, each in contents.items()} == {"train": 8, "test": 4}
    for content in contents.values():
        verdicts = []
        for row in content["responses"]:
            graph = networkx.Graph(re.findall(r"(\d+)\[edge_sep\](\d+)", row["prompt"]))
            assert len(row["generated"]) == 3
            for text, correct in zip(row["generated"], row["correct"], strict=True):
                walk = text.split("[sep]")
                closed = [*walk, walk[0]]
                expected = sorted(walk) == sorted(graph) and networkx.is_path(graph, closed)
                assert correct == expected
                verdicts.append(correct)
        assert content["correct"] == np.mean(verdicts)
    pairs = [(row["prompt"], row["chosen"]) for row in contents["test"]["responses"]]
    found = contents["test"]["log_probs"]
    model = str(run.model)
    assert found["chosen"] == pytest.approx(np.mean(independent.log_probs(model, model, pairs)), abs=1e-3)
    # Rewards are beta times the growths, so margins over beta are those of the scored rewards.
    rewards = pd.read_parquet(run.rewards("test"))
    margins = (rewards["chosen_reward"] - rewards["rejected_reward"]) / 0.01
    assert found["smallest_margin_over_beta"] == pytest.approx(margins.min(), abs=1e-3)
    assert found["mean_margin_over_beta"] == pytest.approx(margins.mean(), abs=1e-3)
    assert found["largest_growth"] == pytest.approx(rewards["chosen_reward"].max() / 0.01, abs=1e-3)
    growth = found["chosen"] - found["chosen_reference"]
    assert growth == pytest.approx(rewards["chosen_reward"].mean() / 0.01, abs=1e-3)

    file = run.path / "generation" / "test.json"
    changed = json.loads(file.read_text()) | {"correct": 0.5}
    file.write_text(json.dumps(changed))
    assert run_command(run.path, *options).exit_code == 0
    assert json.loads(file.read_text()) == changed  # what is there is kept
    run_command(run.path, "--max-new-tokens", 12, "--limit", 2)
    assert json.loads(file.read_text())["prompts"] == 2

    shipped = run_command(run.path, "--max-new-tokens", 12, "--limit", 2, "--chat-template", "released")
    assert shipped.exit_code == 0, shipped.output  # the template of the recipe, by its name
    template = run.path / "other.jinja"
    template.write_text((run.model / "chat_template.jinja").read_text() + "\n")
    options = ("--max-new-tokens", 12, "--limit", 2, "--chat-template", template)
    refused = run_command(run.path, *options)  # another template, although the finished samples would fit its options
    assert refused.exit_code == 2
    assert f"The chat template {template} is not the one that the model was trained with." in refused.output
    assert run_command(run.path, *options, "--no-verify").exit_code == 0
    assert json.loads(file.read_text())["settings"]["chat_template"] == template.read_text()


def test_other_tasks_are_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    pq.write_table(
        pa.table({"prompt": ["why?"], "chosen": ["a"], "rejected": ["b"]}), tmp_path / "run/examples/train.parquet"
    )
    result = run_command(tmp_path / "run", "--limit", 3)
    assert result.exit_code == 2
    assert "describes no graph" in result.output
    assert run_command(tmp_path).exit_code == 2
