"""Texts to which the chat template was already applied are read back into turns, or refused: nothing in between."""

from __future__ import annotations

import pytest
import tiny
from test_templates import TEXT, by_name, of_bytes

from rmkit.config.recipe import Explicit
from rmkit.data.conversations import Message, messages, parse_prompt
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.pairs import encode_pairs
from rmkit.encoding.templated import TemplateReader
from rmkit.encoding.tokenizer import ensure_pad_token
from rmkit.errors import RmkitError
from rmkit.reward_models import make_reward_model

DATE = "26 Jul 2024"
PROMPTS = [
    (Message("user", "How?\nSo"),),
    (Message("system", "Be brief."), Message("user", "Hi")),
    (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "So?")),
]
RESPONSES = ("The answer", "The box")
FAST = {"gemma", "llama3", "qwen3", "deepseekv3", "phi3", "gptoss", "qwen2_5"}


def encoder(architecture="qwen2"):
    tokenizer = tiny.tokenizer(architecture)
    ensure_pad_token(tokenizer)
    return ChatEncoder(tokenizer, DATE if architecture == "llama" else None)


def rendered(encoder, turns, generation):
    return encoder.template.render(messages(turns), add_generation_prompt=generation)


def read(reader, pair, templated="read"):
    (found,) = reader.apply(PreferenceData("set", [pair], templated=templated), [pair])
    return found


def as_pair(turns):
    return PreferencePair(parse_prompt(turns, "x"), *RESPONSES)


def templated(encoder, turns):
    """A pair in the ways in which templated data are stored."""
    before = rendered(encoder, turns, True)
    wholes = [rendered(encoder, (*turns, Message("assistant", text)), False) for text in RESPONSES]
    yield PreferencePair(before, *RESPONSES)
    yield PreferencePair(before.strip(), *RESPONSES)
    yield PreferencePair(before, *wholes)
    cut = next(at for at, (a, b) in enumerate(zip(*wholes, strict=False)) if a != b)
    yield PreferencePair(wholes[0][:cut], *wholes)
    if all(whole.startswith(before) for whole in wholes):
        yield PreferencePair(before, *(whole[len(before) :] for whole in wholes))


@pytest.mark.parametrize("turns", PROMPTS, ids=len)
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_every_way_of_storing_is_read_back(architecture, turns):
    made = encoder(architecture)
    reader = TemplateReader(made)
    found = [read(reader, pair) for pair in templated(made, turns)]
    assert found == [as_pair(turns)] * 5


@pytest.mark.parametrize(
    "path",
    [path if path.stem in FAST else pytest.param(path, marks=pytest.mark.slow) for path in TEXT],
    ids=by_name,
)
def test_what_is_read_renders_as_the_text(path):
    """For all templates of trl; those that hide something (such as channels) refuse."""
    made = ChatEncoder(of_bytes(path))
    reader = TemplateReader(made)
    for turns in PROMPTS:
        try:
            text = rendered(made, turns, True)
        except RmkitError:
            continue  # no system turn
        for pair in templated(made, turns):
            with pytest.raises(RmkitError, match="set: row 0, column"):
                read(reader, pair, "error")
            try:
                found = read(reader, pair)
            except RmkitError:
                continue
            back = tuple(Message(**message) for message in messages(found.prompt))
            assert rendered(made, back, True) == text
            for response, wanted in zip((found.chosen, found.rejected), RESPONSES, strict=True):
                assert response.split("\n")[-1] == wanted


def test_encoding_reads_templated_pairs_like_messages():
    made = encoder()
    reward_model = make_reward_model(Explicit(), made)
    pairs = [as_pair(turns) for turns in PROMPTS]
    wanted = encode_pairs(PreferenceData("set", pairs), reward_model)
    for stored in zip(*(templated(made, turns) for turns in PROMPTS), strict=True):
        found = encode_pairs(PreferenceData("set", stored, templated="read"), reward_model)
        assert list(found.chosen) == list(wanted.chosen)
        assert list(found.rejected) == list(wanted.rejected)
        assert list(found.pairs) == pairs
        with pytest.raises(RmkitError, match="set: row 0, column prompt spells turns of a chat template") as error:
            encode_pairs(PreferenceData("set", stored), reward_model)
        assert "templated: read" in error.value.remedy
        as_text = encode_pairs(PreferenceData("set", stored, templated="text"), reward_model)
        assert as_text.longest > wanted.longest


OPENING = "<|im_start|>user\n"


@pytest.mark.parametrize(
    "pair",
    [
        ("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "Yes", "No"),  # of another template
        (f"{OPENING}Hi", "Yes", "No"),  # an open turn
        (f"{OPENING}Hi<|im_end|>\n<|im_start|>tool\nx<|im_end|>\n<|im_start|>assistant\n", "Yes", "No"),
        ("Hi", f"{OPENING}Ho<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n", "No"),  # another prompt
        ("Hi", f"Yes<|im_end|>\n{OPENING}More<|im_end|>\n<|im_start|>assistant\nSo<|im_end|>\n", "No"),  # more turns
    ],
)
def test_what_the_template_does_not_write_is_refused(pair):
    with pytest.raises(RmkitError) as error:
        read(TemplateReader(encoder()), PreferencePair(*pair, index=3))
    assert error.value.cause.startswith("set: row 3: the chat template of")
    assert "templated: text" in error.value.remedy
    assert read(TemplateReader(encoder()), PreferencePair(*pair), "text") == PreferencePair(*pair)


def test_responses_may_be_plain_or_end_as_the_template_ends_them():
    reader = TemplateReader(encoder())
    prompt = f"{OPENING}Hi<|im_end|>\n<|im_start|>assistant\n"
    for chosen in ("Yes", "Yes<|im_end|>", "Yes<|im_end|>\n", "<|im_start|>assistant\nYes<|im_end|>\n"):
        assert read(reader, PreferencePair(prompt, chosen, "No")) == PreferencePair("Hi", "Yes", "No")
    no_opener = PreferencePair(f"{OPENING}Hi<|im_end|>\n", "<|im_start|>assistant\nYes<|im_end|>", "No")
    assert read(reader, no_opener) == PreferencePair("Hi", "Yes", "No")
    plain = PreferencePair("Hi", "Yes<|im_end|>", "No")  # not a turn, so it stays text
    assert read(reader, plain) == plain


def test_a_plain_opening_of_a_template_is_not_a_mark():
    """Prose may begin as a template without control tokens does."""
    tokenizer = tiny.tokenizer("qwen2")
    tokenizer.chat_template = tiny.CHATML.replace("<|im_start|>{{ m['role'] }}", "{{ m['role'] }}:").replace(
        "<|im_start|>assistant", "assistant:"
    )
    reader = TemplateReader(ChatEncoder(tokenizer))
    assert not reader.is_templated("user:\nis a word")
