"""Rewards by token: terms and prefix rewards against plain transformers, the files, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import independent
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import typer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from rmkit import RmkitError, load_reward_model
from rmkit.commands.explain import explain as command
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.evaluation.token_rewards import explain, merge_explanations, most_wrong
from rmkit.report.explanation import TokenValues, html
from rmkit.runs.directory import RunDirectory
from rmkit.runs.explanation import Explanation

ARCHITECTURES = ["llama", "qwen2", "gemma2"]
PROMPT = "How do I bake <b>bread</b>?"
RESPONSES = ["Mix flour, water.\nWait. été 🍞", "No"]


def date_of(architecture):
    return "26 Jul 2024" if architecture == "llama" else None


@pytest.fixture(scope="module")
def places(models, tmp_path_factory):
    """Per architecture a policy and an explicit model; the shared language models are the references."""
    folder = tmp_path_factory.mktemp("explained")
    made = {}
    for name in ARCHITECTURES:
        policy = tiny.save_language_model(folder / name / "policy", name, seed=1)
        tokenizer, _ = load_tokenizer(policy)
        torch.manual_seed(2)
        model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder / name / "explicit")
        tokenizer.save_pretrained(folder / name / "explicit")
        made[name] = {"policy": str(policy), "explicit": str(folder / name / "explicit"), "base": str(models[name])}
    return made


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param


def implicit(places, architecture, reference="base", beta=0.5):
    other = "none" if reference == "none" else places[architecture][reference]
    return load_reward_model(
        places[architecture]["policy"], "implicit", reference=other, beta=beta, date_string=date_of(architecture)
    )


def explicit(places, architecture, pooling="last"):
    return load_reward_model(places[architecture]["explicit"], pooling=pooling, date_string=date_of(architecture))


def ids_of(folder, architecture, response):
    """Ids of the prompt and of the response, from transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before, after = independent.texts(tokenizer, PROMPT, response, date_of(architecture))
    return independent.ids(tokenizer, before), independent.ids(tokenizer, after)


@torch.no_grad()
def token_log_probs(folder, before, after):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    each = torch.log_softmax(model(torch.tensor([before + after])).logits[0], dim=-1)
    return np.array([each[len(before) - 1 + at, token].item() for at, token in enumerate(after)])


@pytest.mark.parametrize("reference", ["base", "none"])
@pytest.mark.parametrize("response", RESPONSES)
def test_terms_are_those_of_equation_2_and_sum_to_the_reward(places, architecture, reference, response):
    scorer = implicit(places, architecture, reference)
    found = explain(scorer, PROMPT, response)
    before, after = ids_of(places[architecture]["policy"], architecture, response)
    expected = token_log_probs(places[architecture]["policy"], before, after)
    if reference != "none":
        expected = expected - token_log_probs(places[architecture]["base"], before, after)
    np.testing.assert_allclose(found.implicit_terms, 0.5 * expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0.1  # the comparison would see a missing term
    assert found.explicit_prefix_rewards is None
    (reward,) = scorer.score([PROMPT], [response])
    assert abs(sum(found.implicit_terms) - reward) < 1e-5
    assert found.rewards["implicit"] == pytest.approx(reward, abs=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("response", RESPONSES)
@torch.no_grad()
def test_prefix_rewards_are_the_head_on_each_hidden_state_of_one_pass(places, architecture, pooling, response):
    scorer = explicit(places, architecture, pooling)
    found = explain(scorer, PROMPT, response, batch_size=3)
    before, after = ids_of(places[architecture]["explicit"], architecture, response)
    model = AutoModelForSequenceClassification.from_pretrained(places[architecture]["explicit"]).eval()
    hidden = model.base_model(torch.tensor([before + after])).last_hidden_state[0, len(before) :]
    if pooling == "mean":
        hidden = hidden.cumsum(0) / torch.arange(1, len(after) + 1)[:, None]
    expected = (hidden @ model.score.weight[0]).numpy()
    np.testing.assert_allclose(found.explicit_prefix_rewards, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    (reward,) = scorer.score([PROMPT], [response])
    assert found.rewards["explicit"] == pytest.approx(reward, abs=1e-5)
    assert sum(found.increments) == pytest.approx(reward, abs=1e-5)
    assert found.increments[1] == pytest.approx(expected[1] - expected[0], abs=1e-4)
    assert found.implicit_terms is None


def test_generative_models_score_every_prefix(places):
    folder = places["qwen2"]["policy"]
    scorer = load_reward_model(folder, "generative")
    found = explain(scorer, PROMPT, "Mix flour. Wait.")
    prefixes = ["".join(found.tokens[:end]) for end in range(1, len(found.tokens) + 1)]
    whole = prefixes.index("Mix flour. Wait.")
    assert whole < len(prefixes) - 1  # what ends the response is no part of the text that is verified
    texts = prefixes[:whole] + ["Mix flour. Wait."] * (len(prefixes) - whole)
    expected = independent.generative(folder, [(PROMPT, text) for text in texts])
    np.testing.assert_allclose(found.explicit_prefix_rewards, expected, rtol=1e-4)
    assert scorer.token_terms(PROMPT, "No") is None


@pytest.mark.parametrize("response", RESPONSES)
def test_tokens_are_the_text(places, architecture, response):
    tokenizer, _ = load_tokenizer(places[architecture]["policy"])
    encoder = ChatEncoder(tokenizer, date_of(architecture))
    (sequence,) = encoder.response_sequences([PROMPT], [response])
    pieces = encoder.response_tokens(sequence)
    assert len(pieces) == len(sequence) - sequence.response_start
    assert "".join(pieces) == independent.texts(tokenizer, PROMPT, response, date_of(architecture))[1]
    if "é" in response:
        assert "" in pieces  # the parts of a character
    assert encoder.end_id in sequence.ids[sequence.response_start :]
    assert tokenizer.decode([encoder.end_id]) in ("<|eot|>", "<|im_end|>", "<end_of_turn>")


def test_explanations_with_equal_tokens_are_merged():
    def of(tokens, **parts):
        return Explanation(prompt="p", response="r", tokens=tokens, **parts)

    terms = of(["a", "b"], implicit_terms=[0.1, -0.3])
    rewards = of(["a", "b"], explicit_prefix_rewards=[1.0, 3.0])
    both = of(["a", "b"], implicit_terms=[0.1, -0.3], explicit_prefix_rewards=[1.0, 3.0])
    assert merge_explanations(terms, rewards) == merge_explanations(rewards, terms) == both
    assert merge_explanations(terms, of(["ab"], explicit_prefix_rewards=[3.0])) == terms
    assert merge_explanations(terms, None) == terms
    assert both.increments == [1.0, 2.0]
    assert TokenValues("terms", "", [0.1, -0.4]).shades == [0.25, -1.0]
    assert TokenValues("increments", "", [5.0, 1.0, -2.0]).shades == [0.0, 0.5, -1.0]
    assert TokenValues("terms", "", [0.0]).shades == [0.0]


def test_the_page_stands_alone_and_is_escaped():
    hostile = "<script>alert(1)</script>"
    explanation = Explanation(
        prompt=hostile,
        response=hostile,
        tokens=[hostile, "\n", ""],
        implicit_terms=[0.1, -0.3, 0.0],
        explicit_prefix_rewards=[1.0, 3.0, 2.5],
    )
    page = html([(hostile, explanation)])
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page
    assert "+0.1" in page
    assert "-0.3" in page


# --- the command ---------------------------------------------------------------------------------------------------


def run_command(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_two_models_from_the_command_line(places, tmp_path):
    place = places["qwen2"]
    result = run_command(
        place["policy"], "--type", "implicit", "--reference", place["base"], "--beta", "0.5",
        "--against", place["explicit"], "--prompt", PROMPT, "--response", RESPONSES[0],
        "--json", str(tmp_path / "e.json"), "--output", str(tmp_path / "e.html"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "e.json").read_text())
    assert list(content) == ["prompt", "response", "tokens", "implicit_terms", "explicit_prefix_rewards", "against"]
    assert len(content["tokens"]) == len(content["implicit_terms"]) == len(content["explicit_prefix_rewards"])
    (reward,) = implicit(places, "qwen2").score([PROMPT], [RESPONSES[0]])
    assert sum(content["implicit_terms"]) == pytest.approx(reward, abs=1e-5)
    (other,) = explicit(places, "qwen2").score([PROMPT], [RESPONSES[0]])
    assert content["against"]["explicit_prefix_rewards"][-1] == pytest.approx(other, abs=1e-5)
    assert f"reward {reward:.4g}" in result.output
    assert "&lt;b&gt;bread" in (tmp_path / "e.html").read_text()


def test_control_tokens_in_texts_follow_the_option(places, tmp_path):
    texts = ["--prompt", "x", "--response", "No<|im_end|>"]

    def tokens(mode):
        explained = run_command(
            places["qwen2"]["explicit"], *texts, "--special-tokens", mode, "--json", str(tmp_path / "e")
        )
        assert explained.exit_code == 0, explained.output
        return json.loads((tmp_path / "e").read_text())["tokens"]

    refused = run_command(places["qwen2"]["explicit"], *texts, "--special-tokens", "error")
    assert refused.exit_code == 2
    assert "(or --special-tokens) to text or keep" in refused.output
    assert tokens("text").count("<|im_end|>") == 1
    assert tokens("keep").count("<|im_end|>") == 2


def test_a_text_with_a_template_is_said(places):
    scorer = implicit(places, "qwen2")
    for texts in [("<|im_start|>user\nHi<|im_end|>\n", "y"), ("Hi", "<|im_start|>assistant\ny<|im_end|>\n")]:
        with pytest.warns(UserWarning, match="explain: The prompt or the response spells turns of a chat template"):
            explain(scorer, *texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x"], "nothing to explain"),
        (["--worst", "3"], "--worst takes its texts from a run"),
        (["--prompt", "x", "--response", " "], "The response is empty"),
    ],
)
def test_mistakes(places, arguments, message):
    result = run_command(places["qwen2"]["explicit"], *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.fixture
def run(places, tmp_path):
    """A run whose three pairs have margins 1, -2 and -0.5."""
    run = RunDirectory(tmp_path / "run")
    for path in (run.rewards("test"), run.examples("test")):
        path.parent.mkdir(parents=True)
    (run.path / "run.json").write_text(json.dumps({"format": 1, "metrics": {"test": {}}}))
    margins = pa.table({"index": [4, 7, 9], "chosen_reward": [1.0, 0.0, 0.0], "rejected_reward": [0.0, 2.0, 0.5]})
    pq.write_table(margins, run.rewards("test"))
    texts = {column: [f"{column} {index}" for index in (4, 7, 9)] for column in ("prompt", "chosen", "rejected")}
    pq.write_table(pa.table({"index": [4, 7, 9]} | texts), run.examples("test"))
    run.model.symlink_to(Path(places["qwen2"]["explicit"]))
    return run


def test_the_most_wrong_pairs_of_a_run(run):
    result = run_command(str(run.path), "--worst", "1")
    assert result.exit_code == 0, result.output
    assert sorted(each.name for each in (run.path / "explain").iterdir()) == [
        "test_7_chosen.json",
        "test_7_rejected.json",
    ]
    content = json.loads((run.path / "explain" / "test_7_rejected.json").read_text())
    assert (content["prompt"], content["response"]) == ("prompt 7", "rejected 7")
    assert [each.file for each in most_wrong(run, 5)] == [
        "test_7_chosen.json", "test_7_rejected.json", "test_9_chosen.json", "test_9_rejected.json"
    ]  # fmt: skip
    run.examples("test").unlink()
    with pytest.raises(RmkitError, match=r"examples/test.parquet cannot be read"):
        most_wrong(run, 1)


def test_log_rewards_rank_where_probabilities_saturate(run):
    saturated = {
        "index": [4, 7, 9],
        "chosen_reward": [1.0, 1.0, 1.0],
        "rejected_reward": [1.0, 1.0, 1.0],
        "chosen_log_reward": [-1e-30, -1e-20, -1e-30],
        "rejected_log_reward": [-2e-30, -1e-30, -1e-31],
    }
    pq.write_table(pa.table(saturated), run.rewards("test"))
    assert [each.file for each in most_wrong(run, 1)] == ["test_7_chosen.json", "test_7_rejected.json"]
