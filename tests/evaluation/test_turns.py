"""Rewards of responses of several turns, and with tools: those of transformers on its own rendering."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from formats import BEFORE, CALL, PLAIN, RESPONSES, ROWS, SEVERAL_TURNS, TOOL, assistant, system, user, write
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rmkit import RmkitError, load_reward_model
from rmkit.data.conversations import as_text, parse_prompt, parse_response
from rmkit.data.preferences import PreferencePair, load_preferences
from rmkit.encoding.batches import pad, share
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.encoding.pairs import TokenSequences
from rmkit.evaluation.scoring import sequence_outputs
from rmkit.evaluation.token_rewards import explain
from rmkit.models.language_model import apply_head, segment_mean

TYPES = ["explicit", "mean", "implicit", "generative"]
TURNS = [*BEFORE, user("How do I bake bread?")]
CHOSEN, REJECTED = SEVERAL_TURNS
TOOLS_CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}{{ style or '' }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "230", "name": "oven", "tool_call_id": CALL["id"]}
BESIDES = {"tools": [TOOL], "chat_template_kwargs": {"style": "Tersely."}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turns")
    policy = tiny.save_language_model(folder / "policy", "qwen2", seed=1)
    tiny.save_classifier(folder / "classifier", policy)
    (folder / "tools.jinja").write_text(TOOLS_CHATML)
    return folder


def load(folders, name, **options):
    if name in ("explicit", "mean"):
        pooling = "mean" if name == "mean" else "last"
        return load_reward_model(str(folders / "classifier"), "explicit", pooling=pooling, **options)
    options |= {"reference": "none", "beta": 1.0} if name == "implicit" else {}
    return load_reward_model(str(folders / "policy"), name, **options)


@pytest.fixture(scope="module")
def scorers(folders):
    return {name: load(folders, name) for name in TYPES}


@pytest.fixture(scope="module")
def tool_scorers(folders):
    return {name: load(folders, name, chat_template=str(folders / "tools.jinja")) for name in TYPES}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@torch.no_grad()
def rewards_of_transformers(folders, template, prompt, response, tools=None, **options):
    """Rewards from renderings of transformers, in which only the assistant's turns of the response count."""
    tokenizer = AutoTokenizer.from_pretrained(folders / "policy")
    tokenizer.chat_template = template or tokenizer.chat_template

    def ids(messages, start=False):
        options_ = {"tools": tools, "add_generation_prompt": start, "return_dict": False, **options}
        return tokenizer.apply_chat_template(messages, **options_)

    whole = ids([*prompt, *response])
    mask = torch.zeros(len(whole), dtype=torch.bool)
    for number, turn in enumerate(response):
        if turn["role"] == "assistant":
            before = [*prompt, *response[:number]]
            mask[len(ids(before, start=True)) : len(ids([*before, turn]))] = True
    logits = AutoModelForCausalLM.from_pretrained(folders / "policy").eval()(torch.tensor([whole])).logits[0]
    each = torch.log_softmax(logits.double(), dim=-1)[range(len(whole) - 1), whole[1:]]
    classifier = AutoModelForSequenceClassification.from_pretrained(folders / "classifier").eval()
    hidden = classifier.base_model(torch.tensor([whole])).last_hidden_state[0]
    rewards = {
        "implicit": each[mask[1:]].sum().item(),
        "explicit": classifier.score(hidden[-1]).item(),
        "mean": classifier.score(hidden[mask].mean(0)).item(),
    }
    return whole, mask, rewards


@pytest.mark.parametrize("case", ["turns", "system", "tools", "call", "no tools"])
def test_rewards_are_those_of_transformers_on_its_own_rendering(folders, scorers, tool_scorers, case):
    prompt, response, besides = {
        "turns": (TURNS[1:], CHOSEN, {}),
        "system": (TURNS, REJECTED, {}),
        "tools": ([*TURNS[1:], CALLS, RESULT], [assistant("Done.")], BESIDES),
        "call": ([TURNS[-1]], [CALLS, RESULT, assistant("Done.")], BESIDES),
        "no tools": ([TURNS[-1]], [assistant("Done."), RESULT, CALLS], {}),
    }[case]
    options = {"tools": besides.get("tools"), **besides.get("chat_template_kwargs", {})}
    given = tool_scorers if "tool" in str((prompt, response)) else scorers
    template = TOOLS_CHATML if given is tool_scorers else None
    whole, mask, wanted = rewards_of_transformers(folders, template, prompt, response, **options)
    parsed = parse_prompt({"messages": prompt, **besides}, "x"), parse_response(response, "x")
    (sequence,) = given["implicit"].reward_model.encode(*([each] for each in parsed))
    assert sequence.ids == whole
    assert sequence.response_positions.tolist() == torch.nonzero(mask).flatten().tolist()
    assert sequence.response_length == len(sequence.response_ends) == mask.sum()
    for name, reward in wanted.items():
        pair = {"prompt": prompt, "chosen": response, "rejected": response, **besides}
        np.testing.assert_allclose(given[name].score_pairs([pair]), [[reward] * 2], rtol=1e-6, atol=1e-6)


def test_an_implicit_reward_is_the_sum_of_those_of_the_turns(scorers):
    """Each turn counts as a response of one turn does to what stands before it."""
    prompts = [TURNS, [*TURNS, *CHOSEN[:2]]]
    parts = scorers["implicit"].score(prompts, [CHOSEN[0]["content"], CHOSEN[2]["content"]])
    np.testing.assert_allclose(scorers["implicit"].score([TURNS], [CHOSEN]), [parts.sum()], rtol=1e-6)


def test_the_mean_leaves_out_other_turns_by_hand():
    """Tokens 2, 3 and 6 of 0 to 6 count: hidden states 20, 30 and 60 have the mean 110 / 3; the last one is 60."""
    sequence = TokenSequence([5] * 7, 2, gaps=((4, 6),))
    assert sequence.response_positions.tolist() == [2, 3, 6]
    assert sequence.response_ends == [3, 4, 7]
    assert [sequence.prefix(end).gaps for end in sequence.response_ends] == [(), (), ((4, 6),)]
    batch = pad([sequence, TokenSequence([5] * 3, 1)], 0)
    assert batch["predictor"].tolist() == [1, 2, 5, 7, 8]
    assert batch["response_lengths"].tolist() == [3, 2]
    hidden = torch.arange(14.0)[:, None] * 10
    means = segment_mean(hidden[batch["response"]], batch["response_lengths"])
    assert means.flatten().tolist() == pytest.approx([110 / 3, (80 + 90) / 2])


def pairs():
    return [{"prompt": TURNS, "chosen": CHOSEN, "rejected": REJECTED}, ROWS[0], {**ROWS[1], "chosen": CHOSEN}]


@pytest.mark.parametrize("name", TYPES)
def test_rewards_depend_on_neither_layout_batch_side_nor_order(folders, scorers, name):
    scorer, padded = scorers[name], load(folders, name, layout="padded")
    rewards = scorer.score_pairs(pairs())
    for other, size, given in [(scorer, 1, pairs()), (padded, 8, pairs()), (padded, 1, pairs())]:
        np.testing.assert_allclose(other.score_pairs(given, size), rewards, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scorer.score_pairs(pairs()[::-1]), rewards[::-1], rtol=1e-5, atol=1e-6)
    prompts = [parse_prompt(each["prompt"], "x") for each in pairs()]
    sequences = scorer.reward_model.encode(prompts, [parse_response(each["chosen"], "x") for each in pairs()])
    model, head = scorer.checkpoint.model, scorer.reward_model
    with torch.no_grad():
        left, right = (
            apply_head(model, head.outputs, pad(sequences, 0, side=side)).double() for side in ("left", "right")
        )
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(left, sequence_outputs(model, head, sequences).double(), rtol=1e-5, atol=1e-6)


def test_both_layouts_read_the_same_tokens():
    encoder = ChatEncoder(tiny.tokenizer("qwen2"))
    prompt, chosen = parse_prompt(TURNS, "x"), parse_response(CHOSEN, "x")
    sequences = encoder.response_sequences([prompt] * 2, [chosen, "No."])
    for each in (share(sequences), pad(sequences, 0)):
        ids = each["input_ids"].flatten()
        wanted = [sequence.ids[at] for sequence in sequences for at in sequence.response_positions]
        assert ids[each["response"]].tolist() == wanted
    stored = TokenSequences()
    for sequence in (*sequences, *sequences):
        stored.append(sequence)
    assert stored[:] == [*sequences, *sequences] == [*stored.head(3), sequences[1]]
    assert stored[2].gaps == sequences[0].gaps
    assert len({*sequences, *sequences}) == 2


@pytest.mark.parametrize("name", TYPES)
def test_a_response_of_one_turn_has_the_rewards_of_its_text(scorers, name):
    """To the bit, as messages or as text."""
    prompts, texts = [TURNS, PLAIN[0].prompt], [PLAIN[0].chosen, PLAIN[0].rejected]
    rewards = scorers[name].score(prompts, [[assistant(text)] for text in texts])
    assert np.array_equal(rewards, scorers[name].score(prompts, texts))


@pytest.mark.parametrize("name", TYPES)
def test_every_format_of_several_turns_has_the_same_rewards(tmp_path, scorers, name):
    found = []
    for rows, columns, _ in RESPONSES.values():
        data = load_preferences(str(write(tmp_path, rows)), columns=columns)
        found.append(scorers[name].score_sets({"set": data})["set"])
    assert all(np.array_equal(each.rewards.rewards, found[0].rewards.rewards) for each in found)
    by_python = scorers[name].score_pairs([{"prompt": TURNS, "chosen": CHOSEN, "rejected": REJECTED}])
    np.testing.assert_allclose(found[0].rewards.rewards, by_python, rtol=1e-6, atol=1e-7)
    assert found[0].response_lengths.tolist() == [
        [sum(_tokens(scorers[name], turn) for turn in turns if turn["role"] == "assistant") for turns in SEVERAL_TURNS]
    ]


def _tokens(scorer, turn):
    """Tokens of an assistant's turn: its text, `<|im_end|>` and a line break."""
    return len(scorer.reward_model.encoder.tokenizer(turn["content"] + "<|im_end|>\n")["input_ids"])


def test_the_verification_prompt_holds_responses_and_tools_as_text(tool_scorers):
    encoder = tool_scorers["generative"].reward_model.encoder
    prompt = parse_prompt({"messages": [TURNS[-1]], **BESIDES}, "x")
    response = parse_response([CALLS, RESULT, assistant("Done.")], "x")
    found = encoder.verification_sequences([prompt], [response])
    assert found == encoder.verification_sequences([as_text(prompt)], [as_text(response)])
    text = encoder.tokenizer.decode(found[0].ids)
    assert "Tools: [" in text
    assert text.index("tool_calls: [") < text.index("Tool: 230\nname: oven") < text.index("Assistant: Done.")


@pytest.mark.parametrize("name", TYPES)
def test_a_response_of_several_turns_is_explained(scorers, name):
    found = explain(scorers[name], parse_prompt(TURNS, "x"), parse_response(CHOSEN, "x"))
    (reward,) = scorers[name].score([TURNS], [CHOSEN])
    assert found.rewards["implicit" if found.implicit_terms else "explicit"] == pytest.approx(reward, abs=1e-5)
    assert found.response == "Assistant: Mix flour.\n\nUser: Which?\n\nAssistant: Rye."
    joined = "".join(found.tokens)
    assert joined.startswith("Mix flour.<|im_end|>\n<|im_start|>user\nWhich?<|im_end|>")
    assert len(found.tokens) == _tokens(scorers[name], CHOSEN[0]) + _tokens(scorers[name], CHOSEN[2])


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ([user("x")], r"responses\[0\]: the response is a message of the role user"),
        ([assistant("x"), user("y")], r"responses\[0\]: the response has a message of the role user at an end"),
        ([assistant("x"), system("y"), assistant("z")], "has a message of the role system"),
        ([assistant("x"), assistant("y")], "two messages of the assistant in a row"),
        ([assistant(" ")], r"responses\[0\], message 0 has no text"),
        ([], r"responses\[0\] is empty"),
    ],
)
def test_a_response_that_is_not_well_formed_is_refused(scorers, response, message):
    with pytest.raises(RmkitError, match=message):
        scorers["explicit"].score([TURNS], [response])


# --- what a template does not write --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "what", "remedy"),
    [
        ({"prompt": "Hi", "tools": [TOOL]}, "tools", {"prompt": "Hi"}),
        ({"prompt": [user("a"), CALLS, RESULT]}, "tool_calls", {"prompt": [user("a")]}),
        (
            {"prompt": [user("a"), assistant("b") | {"reasoning_content": "c"}, user("d")]},
            "reasoning_content",
            {"prompt": [user("a"), assistant("b"), user("d")]},
        ),
    ],
)
def test_what_a_template_does_not_write_is_refused(folders, scorers, pair, what, remedy):
    """Both remedies work: another template, or a pair without it."""
    answers = {"chosen": "Yes", "rejected": "No"}
    with pytest.raises(RmkitError, match=f"does not write {what}") as error:
        scorers["explicit"].score_pairs([pair | answers])
    assert error.value.remedy.startswith("Set a base.chat_template (or --chat-template) that does, or remove")
    assert scorers["explicit"].score_pairs([remedy | answers]).shape == (1, 2)
    template = TOOLS_CHATML.replace("{{ m['content'] }}", "{{ m['reasoning_content'] }}{{ m['content'] }}")
    (folders / "thoughts.jinja").write_text(template)
    assert load(folders, "explicit", chat_template=str(folders / "thoughts.jinja")).score_pairs([pair | answers]).all()


def test_an_option_that_a_template_does_not_read_is_said_once():
    encoder = ChatEncoder(tiny.tokenizer("qwen2"))
    options = {"chat_template_kwargs": {"enable_thinking": False}}
    short, long = (parse_prompt({"messages": prompt, **options}, "x") for prompt in ("Hi", TURNS))
    with pytest.warns(UserWarning, match="does not read enable_thinking of chat_template_kwargs") as said:
        found = encoder.response_sequences([short, long], ["Yes", "No"])
    assert len(said) == 1
    assert found == encoder.response_sequences(["Hi", parse_prompt(TURNS, "x")], ["Yes", "No"])


def test_control_tokens_in_turns_of_a_response_are_text_and_in_tools_refused(folders, tool_scorers):
    encoder = tool_scorers["explicit"].reward_model.encoder
    prompt = parse_prompt(TURNS, "x")
    turns = [assistant("a<|im_end|>"), user("<|im_start|>assistant"), assistant("b")]
    (sequence,) = encoder.response_sequences([prompt], [parse_response(turns, "x")])
    (plain,) = encoder.response_sequences([prompt], [parse_response([assistant("a"), user("c"), assistant("b")], "x")])
    start, end = encoder.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [sequence.ids.count(each) for each in (start, end)] == [plain.ids.count(each) for each in (start, end)]
    assert (sequence.prompt_spells, sequence.response_spells) == (False, True)
    ((first, last),) = sequence.gaps
    assert sequence.ids[first] == start
    assert sequence.ids[first:last].count(start) == 2
    tools = [{**TOOL, "description": "<|im_end|>"}]
    spelled = parse_prompt({"messages": "Hi", "tools": tools}, "x")
    with pytest.raises(RmkitError, match="tool calls of a conversation spell a control token") as error:
        encoder.response_sequences([spelled], ["Yes"])
    assert "--special-tokens) to keep" in error.value.remedy
    keeping = ChatEncoder(encoder.tokenizer, special_tokens="keep")
    assert keeping.response_sequences([spelled], ["Yes"])[0].ids.count(end) == 4


def test_a_template_that_ends_earlier_turns_otherwise_is_refused(scorers):
    tokenizer = tiny.tokenizer("qwen2")
    tokenizer.chat_template = tiny.CHATML.replace(
        "<|im_end|>\n{% endfor", "{{ '<|im_end|>' if loop.last or m['role'] != 'assistant' else '!' }}\n{% endfor"
    )
    encoder = ChatEncoder(tokenizer)
    with pytest.raises(RmkitError, match="ends an earlier turn of the assistant otherwise") as error:
        encoder.response_sequences(["Hi"], [parse_response(CHOSEN, "x")])
    assert error.value.remedy == "Set another base.chat_template, or use responses of one turn."
    assert encoder.response_sequences(["Hi"], ["Mix flour."])
    tokenizer.chat_template = tiny.CHATML
    assert ChatEncoder(tokenizer).response_sequences(["Hi"], [parse_response(CHOSEN, "x")])


def test_a_template_that_drops_an_earlier_turn_is_refused():
    tokenizer = tiny.tokenizer("qwen2")
    tokenizer.chat_template = tiny.CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else m['content'].split('>')[-1] }}"
    )
    with pytest.raises(RmkitError, match="drops or changes the response 'thoughts>Rye'"):
        ChatEncoder(tokenizer).response_sequences(
            ["Hi"], [parse_response([assistant("thoughts>Rye"), user("x"), assistant("y")], "x")]
        )


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["explicit", "implicit", "generative"])
def test_a_run_on_responses_of_several_turns(run, tmp_path, kind):
    """Its rewards are those of the saved model; its examples are texts, and hold the conversations as well."""
    from rmkit.evaluation.token_rewards import _prompt, _response

    template = tmp_path / "tools.jinja"
    template.write_text(TOOLS_CHATML)
    rows = [
        {"prompt": TURNS, "chosen": CHOSEN, "rejected": REJECTED, "tools": [TOOL]},
        {"prompt": [TURNS[-1]], "chosen": [CALLS, RESULT, assistant("Done.")], "rejected": [assistant("No.")]},
    ]
    sets = {}
    for name, copies in (("train", 4), ("test", 1)):
        (tmp_path / name).mkdir()
        sets[name] = {"name": name, "path": str(write(tmp_path / name, rows * copies))}
    run_dir = run(
        kind,
        base={"chat_template": str(template)},
        data={"train": sets["train"], "evaluation": [sets["test"]]},
        training={"batch_size": 4},
    )
    data = load_preferences(sets["test"]["path"])
    examples = pq.read_table(run_dir.examples("test")).to_pylist()
    assert [row["chosen"] for row in examples] == [as_text(pair.chosen) for pair in data]
    read = [
        PreferencePair(_prompt(row), _response(row, "chosen"), _response(row, "rejected"), row["index"])
        for row in examples
    ]
    assert read == list(data)
    rewards = pq.read_table(run_dir.rewards("test")).to_pandas()[["chosen_reward", "rejected_reward"]]
    scorer = load_reward_model(str(run_dir.model))
    np.testing.assert_allclose(scorer.score_pairs(data), rewards, rtol=0, atol=1e-6)
    assert examples[0]["chosen_tokens"] == _tokens(scorer, CHOSEN[0]) + _tokens(scorer, CHOSEN[2])


def test_the_assistants_turns_of_a_response_are_rewritten(tmp_path):
    from rmkit.data.rewriting.sets import assemble, distinct_responses, overlaps, rewrite_all_locally, write_set

    rows = [{"prompt": TURNS, "chosen": CHOSEN, "rejected": REJECTED}, {**PLAIN_ROW, "tools": [TOOL]}]
    data = load_preferences(str(write(tmp_path, rows)))
    rewrites = rewrite_all_locally(distinct_responses(data), "casing", 0)
    assert set(rewrites.texts) == {"Mix flour.", "Rye.", "No.", "Too hot.", "Bye"}
    columns, left_out = assemble(data, rewrites)
    assert not left_out
    assert overlaps(columns, str.split)[0] > overlaps(columns, str.split)[1]
    write_set(tmp_path / "rewritten", "test", columns, {})
    rewritten = load_preferences(str(tmp_path / "rewritten"))
    assert [pair.prompt for pair in rewritten] == [pair.prompt for pair in data]
    (first, other, last), second = rewritten.pairs[0].chosen, rewritten.pairs[1].chosen
    assert (first.content, last.content) == (rewrites.texts["Mix flour."], rewrites.texts["Rye."])
    assert (other.content, second) == ("Which?", rewrites.texts["Mix flour."])


PLAIN_ROW = {"prompt": [user("Hi")], "chosen": [assistant("Mix flour.")], "rejected": [assistant("No.")]}


def test_the_theory_is_about_responses_of_one_turn(folders):
    from rmkit.theory.frozen import freeze
    from rmkit.theory.loading import freeze_checkpoint, load_as

    frozen = freeze_checkpoint(load_as(str(folders / "policy"), "implicit"))
    sequences = frozen.reward_model.encode([parse_prompt(TURNS, "x")] * 2, [parse_response(CHOSEN, "x"), "Rye."])
    with pytest.raises(RmkitError, match="A response has several turns") as error:
        freeze(frozen, sequences)
    assert error.value.remedy == "Use pairs of single turns."
    assert freeze(frozen, sequences[1:])
