"""Encoded sets: the same pairs for every type, no truncation, and dropped pairs counted by reason."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

from rmkit.config.recipe import Explicit, Generative, Implicit
from rmkit.data.conversations import Conversation, Message
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.encoding.pairs import PairCollator, TokenSequences, encode_pairs
from rmkit.encoding.tokenizer import ensure_pad_token
from rmkit.errors import RmkitError
from rmkit.reward_models import make_reward_model

SETTINGS = [Explicit(), Explicit(pooling="mean"), Implicit(), Generative(), Generative(generation_weight=0.5)]
PAIRS = [
    PreferencePair("why?", "Yes, wait. " * length, "No." * (length % 3 + 1), index=2 * length)
    for length in (1, 12, 2, 7, 4)
]


@pytest.fixture(scope="module")
def encoder():
    tokenizer = tiny.tokenizer("gemma2")  # strips texts
    ensure_pad_token(tokenizer)
    return ChatEncoder(tokenizer)


@pytest.fixture(scope="module")
def reward_models(encoder):
    return [make_reward_model(settings, encoder) for settings in SETTINGS]


def data(*pairs, **dropped):
    return PreferenceData("set", pairs or PAIRS, dropped)


def lengths(reward_model, pair):
    """Tokens of every text that any type reads for a pair."""
    prompts, responses = [pair.prompt] * 2, [pair.chosen, pair.rejected]
    read = [
        reward_model.encoder.response_sequences(prompts, responses),
        reward_model.encoder.verification_sequences(prompts, responses),
    ]
    return [len(sequence) for sequences in read for sequence in sequences]


def test_a_pair_that_the_template_cannot_write_is_named_by_its_row(reward_models):
    tools = Conversation((Message("user", "why?"),), tools='[{"type": "function"}]')
    given = dataclasses.replace(data(*PAIRS, PreferencePair(tools, "Yes.", "No.", index=21)), pairs_per_row=2)
    for reward_model in reward_models:
        with pytest.raises(RmkitError, match=r"^set: row 10: The chat template of .* does not write tools"):
            encode_pairs(given, reward_model)


def test_without_a_limit_all_pairs_are_encoded_in_order_and_whole(reward_models):
    for reward_model in reward_models:
        encoded = encode_pairs(data(), reward_model)
        assert list(encoded.pairs) == PAIRS
        assert encoded.dropped == {}
        prompts = [pair.prompt for pair in PAIRS]
        assert list(encoded.chosen) == reward_model.encode(prompts, [pair.chosen for pair in PAIRS])
        assert list(encoded.rejected) == reward_model.encode(prompts, [pair.rejected for pair in PAIRS])
        assert encoded.longest == max(map(len, [*encoded.chosen, *encoded.rejected]))


def test_the_same_pairs_remain_for_every_type_at_every_limit(reward_models):
    needed = sorted({max(lengths(reward_models[0], pair)) for pair in PAIRS})
    assert len(needed) == len(PAIRS)
    for limit in sorted({*needed, *(each - 1 for each in needed[1:]), *(each + 1 for each in needed)}):
        fitting = [pair for pair in PAIRS if max(lengths(reward_models[0], pair)) <= limit]
        for reward_model in reward_models:
            encoded = encode_pairs(data(), reward_model, max_length=limit)
            assert list(encoded.pairs) == fitting
            reason = f"longer than {limit} tokens"
            assert encoded.dropped == ({reason: len(PAIRS) - len(fitting)} if len(fitting) < len(PAIRS) else {})
            whole = encode_pairs(data(*fitting), reward_model)
            assert encoded.chosen == whole.chosen
            assert encoded.rejected == whole.rejected


def test_a_long_rejected_response_or_prompt_counts_too(reward_models):
    swapped = dataclasses.replace(PAIRS[1], chosen=PAIRS[1].rejected, rejected=PAIRS[1].chosen)
    asked = dataclasses.replace(PAIRS[0], prompt="why? " * 50)
    for pair in (swapped, asked):
        limit = max(lengths(reward_models[0], pair)) - 1
        assert encode_pairs(data(pair, PAIRS[0]), reward_models[0], max_length=limit).dropped


def test_over_length_may_be_an_error(reward_models):
    needed = [max(lengths(reward_models[0], pair)) for pair in PAIRS]
    for reward_model in reward_models:
        with pytest.raises(RmkitError) as error:
            encode_pairs(data(), reward_model, max_length=max(needed) - 1, over_length="error")
        number = needed.index(max(needed))
        assert f"set: row {PAIRS[number].index} takes {needed[number]} tokens" in error.value.cause
        assert f"limit of {needed[number] - 1}" in error.value.cause
        assert len(encode_pairs(data(), reward_model, max_length=max(needed), over_length="error")) == len(PAIRS)


def test_responses_that_the_template_makes_identical_are_dropped_or_an_error(reward_models):
    same = PreferencePair("why?", "Yes\n", " Yes", index=7)
    for reward_model in reward_models:
        encoded = encode_pairs(data(same, PAIRS[0]), reward_model)
        assert [pair.index for pair in encoded.pairs] == [PAIRS[0].index]
        assert encoded.dropped == {"identical responses": 1}
        with pytest.raises(RmkitError, match="row 7 has the same chosen and rejected"):
            encode_pairs(data(same, PAIRS[0]), reward_model, identical="error")


def test_errors_of_texts_name_the_row(monkeypatch):
    tokenizer = tiny.tokenizer("qwen2")
    ensure_pad_token(tokenizer)
    reward_model = make_reward_model(Explicit(), ChatEncoder(tokenizer, special_tokens="error"))
    pairs = [PreferencePair(f"q{number}", "a", "b", number) for number in range(9)]
    pairs[7] = dataclasses.replace(pairs[7], rejected="b <|im_end|> c")
    for chunk in (1000, 2):
        monkeypatch.setattr("rmkit.encoding.pairs._CHUNK", chunk)
        with pytest.raises(RmkitError, match=r"^set: row 3: The text .* spells a control token"):
            encode_pairs(PreferenceData("set", pairs, pairs_per_row=2), reward_model)


def test_counts_include_those_of_loading(reward_models):
    loaded = PreferenceData("set", [*PAIRS, PreferencePair("x", "Yes ", "Yes")], {"identical responses": 2})
    encoded = encode_pairs(loaded, reward_models[0], max_length=60)
    assert encoded.dropped["identical responses"] == 3
    assert len(encoded) + sum(encoded.dropped.values()) == len(loaded) + 2
    assert loaded.dropped == {"identical responses": 2}


def test_an_empty_set_is_an_error_with_reasons(reward_models):
    with pytest.raises(RmkitError) as error:
        encode_pairs(data(*PAIRS, PreferencePair("x", "Yes ", "Yes")), reward_models[0], max_length=3)
    assert "no pair is left (6 longer than 3 tokens)" in error.value.cause
    assert "data.max_length" in error.value.remedy


def test_response_lengths_do_not_depend_on_the_type(reward_models):
    encoded = [encode_pairs(data(), reward_model) for reward_model in reward_models]
    assert len({each.response_lengths for each in encoded}) == 1
    plain = reward_models[0].encoder.response_sequences([PAIRS[0].prompt], [PAIRS[0].chosen])[0]
    assert encoded[0].response_lengths[0][0] == len(plain) - plain.response_start


def test_chunks_do_not_change_the_result(reward_models, monkeypatch):
    whole = encode_pairs(data(), reward_models[0])
    monkeypatch.setattr("rmkit.encoding.pairs._CHUNK", 2)
    assert encode_pairs(data(), reward_models[0]) == whole


def test_the_collator_looks_up_the_rows_of_the_columns(reward_models):
    margins = data(*(dataclasses.replace(pair, margin=pair.index / 2) for pair in PAIRS))
    for reward_model in reward_models:
        encoded = encode_pairs(margins, reward_model)
        columns = encoded.columns()
        assert columns["row"] == [0, 1, 2, 3, 4]
        assert columns["margin"] == [1.0, 12.0, 2.0, 7.0, 4.0]
        rows = [{name: values[number] for name, values in columns.items()} for number in (3, 0)]
        batch = PairCollator(encoded, 0, generation=reward_model.generation)(rows)
        texts = [pair for number in (3, 0) for pair in (encoded.chosen[number], encoded.rejected[number])]
        assert batch["index"].tolist() == [3, 0]
        assert batch["margin"].tolist() == [7.0, 1.0]
        assert [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ][:4] == [text.ids for text in texts]
        if reward_model.generation:
            responses = reward_model.encoder.response_sequences(["why?"] * 2, [PAIRS[3].chosen, PAIRS[0].chosen])
            assert batch["generation"]["response_lengths"].tolist() == [
                len(text) - text.response_start for text in responses
            ]
    assert "margin" not in encode_pairs(data(), reward_models[0]).columns()


def test_types_that_read_responses_hold_them_once(reward_models):
    for reward_model in reward_models:
        encoded = encode_pairs(data(), reward_model)
        assert (encoded.chosen_responses is encoded.chosen) == reward_model.reads_responses
        responses = reward_model.encoder.response_sequences(
            [pair.prompt for pair in PAIRS], [pair.chosen for pair in PAIRS]
        )
        assert list(encoded.chosen_responses) == responses


def test_packed_sequences_are_those_that_were_added():
    sequences = [
        TokenSequence([3, 70_000, 5], 2, prompt_spells=True),
        TokenSequence([], 0, response_spells=True),
        TokenSequence([2**31 - 1], 1, True, True),
    ]
    packed = TokenSequences()
    for sequence in sequences:
        packed.append(sequence)
    assert list(packed) == packed[:] == sequences
    assert [(each.prompt_spells, each.response_spells) for each in packed] == [
        (True, False),
        (False, True),
        (True, True),
    ]
    assert packed[-1] == sequences[-1]
    assert packed[1:] == sequences[1:]
    assert packed.lengths.tolist() == [3, 0, 1]
    assert list(packed.head(2)) == sequences[:2]
    assert packed.head(9) == packed != packed.head(2)
    with pytest.raises(IndexError):
        packed[3]


def test_the_head_of_a_set(reward_models):
    encoded = encode_pairs(data(), reward_models[0])
    head = encoded.head(2)
    assert len(head) == 2
    assert head.columns() == {name: values[:2] for name, values in encoded.columns().items()}
    assert len(encoded.head(99)) == len(PAIRS)
