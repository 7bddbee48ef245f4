"""Rewards equal an independent implementation's for any batch size, padding side and order."""

from __future__ import annotations

import independent
import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from rmkit import load_reward_model
from rmkit.data.preferences import load_preferences
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.evaluation.scoring import sequence_outputs
from rmkit.models.language_model import load, next_token_logits
from rmkit.reward_models.explicit import explicit_reward
from rmkit.reward_models.generative import answer_log_prob, generative_reward
from rmkit.reward_models.implicit import implicit_reward

DATE = "26 Jul 2024"
PAIRS = [
    ("How do I bake bread?", "Mix flour, water, salt and yeast. Wait. Bake it."),
    ("How do I bake bread?", "No."),
    ("why?", "The quick brown fox jumps over the lazy dog, and 12 + 30 = 42; why? été ñandú"),
    ("1. one\n2. two", "Yes {x} \\frac{1}{2}"),
    ("The {prompt} and the {response}", "three"),
]


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    """Models as a run would leave them: with all tokens and a head, and a second one as the policy of a reference."""
    folder = tmp_path_factory.mktemp("trained")
    made = {}
    for name, base in models.items():
        tokenizer, _ = load_tokenizer(base)
        made[name] = {}
        for role, seed in (("policy", 1), ("reference", 0)):
            place = folder / name / role
            tiny.save_language_model(place, name, seed=seed)
            model = load(independent.AutoModelForCausalLM, place)
            model.resize_token_embeddings(max(len(tokenizer), model.get_input_embeddings().weight.shape[0]))
            type(model).save_pretrained(model, place)
            tokenizer.save_pretrained(place)
            made[name][role] = place
        place = folder / name / "explicit"
        torch.manual_seed(2)
        model = AutoModelForSequenceClassification.from_pretrained(made[name]["policy"], num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        made[name]["explicit"] = place
    return made


def agree(rewards, expected):
    np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def date_of(architecture):
    return DATE if architecture == "llama" else None


@pytest.fixture(params=tiny.ARCHITECTURES)
def architecture(request):
    return request.param


def in_all_batches(scorer, pairs, expected):
    prompts, responses = zip(*pairs, strict=True)
    for batch_size in (1, 3, 16):
        agree(scorer.score(prompts, responses, batch_size), expected)
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = scorer.score([prompts[i] for i in order], [responses[i] for i in order], 3)
    agree(shuffled, np.asarray(expected)[order])
    sequences = scorer.reward_model.encode(prompts, responses)
    layouts = [
        sequence_outputs(scorer.checkpoint.model, scorer.reward_model, sequences, batch_size=3, layout=layout).numpy()
        for layout in ("shared", "padded")
    ]
    agree(layouts[0], layouts[1])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_explicit(trained, architecture, pooling):
    folder, date = trained[architecture]["explicit"], date_of(architecture)
    scorer = load_reward_model(str(folder), pooling=pooling, date_string=date)
    in_all_batches(scorer, PAIRS, independent.explicit(folder, PAIRS, date, pooling))


@pytest.mark.parametrize(("reference", "beta"), [("reference", 0.01), ("reference", 1.0), ("none", 0.01)])
def test_implicit(trained, architecture, reference, beta):
    policy, date = trained[architecture]["policy"], date_of(architecture)
    other = "none" if reference == "none" else str(trained[architecture]["reference"])
    scorer = load_reward_model(str(policy), "implicit", reference=other, beta=beta, date_string=date)
    expected = beta * np.array(independent.log_probs(policy, policy, PAIRS, date))
    if reference != "none":
        expected -= beta * np.array(independent.log_probs(other, policy, PAIRS, date))
    assert np.abs(expected).max() > beta  # the comparison would see a missing term
    in_all_batches(scorer, PAIRS, expected)


def test_generative(trained, architecture):
    policy, date = trained[architecture]["policy"], date_of(architecture)
    scorer = load_reward_model(str(policy), "generative", date_string=date)
    in_all_batches(scorer, PAIRS, independent.generative(policy, PAIRS, date))


@pytest.mark.released
def test_all_types_on_released_pairs(trained, released):
    pairs = load_preferences("ultrafeedback_french", root=released, limit=2)
    responses = [(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)]
    policy, reference = (str(trained["qwen2"][role]) for role in ("policy", "reference"))
    explicit = load_reward_model(str(trained["qwen2"]["explicit"]))
    agree(explicit.score_pairs(pairs).ravel(), independent.explicit(trained["qwen2"]["explicit"], responses))
    implicit = load_reward_model(policy, "implicit", reference=reference, beta=0.1)
    expected = np.subtract(
        independent.log_probs(policy, policy, responses), independent.log_probs(reference, policy, responses)
    )
    agree(implicit.score_pairs(pairs).ravel(), 0.1 * expected)
    generative = load_reward_model(policy, "generative")
    agree(generative.score_pairs(pairs).ravel(), independent.generative(policy, responses))


def test_an_explicit_model_scores_the_same_as_plain_transformers(trained, architecture):
    folder, date = trained[architecture]["explicit"], date_of(architecture)
    scorer = load_reward_model(str(folder), date_string=date)
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    sequences = scorer.reward_model.encode(*zip(*PAIRS, strict=True))
    with torch.no_grad():
        expected = [plain(torch.tensor([sequence.ids])).logits.item() for sequence in sequences]
    agree(scorer.score(*zip(*PAIRS, strict=True)), expected)


def test_logits_equal_the_models_own(models, architecture):
    model = load(independent.AutoModelForCausalLM, models[architecture])
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        hidden = model.base_model(tokens).last_hidden_state[0]
        torch.testing.assert_close(next_token_logits(model, hidden), model(tokens).logits[0])


def test_pure_rewards_by_hand():
    assert explicit_reward(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([3.0, 0.5])).tolist() == [4.0, -0.5]
    log_probs, reference = torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -4.0])
    assert implicit_reward(log_probs, reference, 0.5).tolist() == [0.5, -0.5]
    assert implicit_reward(log_probs, None, 0.5).tolist() == [-1.5, -2.5]
    assert generative_reward(torch.tensor([0.0, -np.log(4)])).tolist() == pytest.approx([1.0, 0.25])


def test_saturated_verdicts_still_rank():
    logits = torch.tensor([[50.0, 0.0], [60.0, 0.0], [-50.0, 0.0]])
    log_probs = answer_log_prob(logits, 0)
    assert generative_reward(log_probs)[0] == generative_reward(log_probs)[1] == 1.0
    assert log_probs[0] < log_probs[1] < 0  # -e^-50 and -e^-60
    assert log_probs.tolist() == pytest.approx([-np.exp(-50.0), -np.exp(-60.0), -50.0], rel=1e-12)


def test_a_pad_token_inside_a_text_does_not_move_the_score(trained):
    """Stock models read the score at the rightmost token that is not the pad token; the position is explicit here."""
    folder = trained["qwen2"]["explicit"]
    scorer = load_reward_model(str(folder), special_tokens="keep")
    ends_in_pad = "Yes <|endoftext|><|endoftext|>"
    pairs = [("why?", ends_in_pad), *PAIRS]
    agree(scorer.score(*zip(*pairs, strict=True), 16), independent.explicit(folder, pairs))


def test_scores_come_back_for_mappings_triples_and_pairs(trained):
    scorer = load_reward_model(str(trained["qwen2"]["explicit"]))
    as_mapping = scorer.score_pairs([{"prompt": "why?", "chosen": "Yes", "rejected": "No"}])
    assert as_mapping.shape == (1, 2)
    assert as_mapping.dtype == np.float64
    assert (as_mapping == scorer.score_pairs([("why?", "Yes", "No")])).all()
    assert (as_mapping[0] == scorer.score(["why?"] * 2, ["Yes", "No"], 8)).all()
    assert scorer.score([], []).shape == (0,)


def test_copying_a_bound_model_copies_its_weights(trained):
    """A closure over the original would keep calling the old weights."""
    import copy

    model = load(independent.AutoModelForCausalLM, trained["llama"]["policy"])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_output_embeddings().weight.zero_()
        assert other(torch.arange(5)[None]).logits.abs().max() == 0
        assert model(torch.arange(5)[None]).logits.abs().max() > 0
