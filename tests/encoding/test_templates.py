"""The chat templates that models ship: every text template of the installed trl package encodes, and how."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import tiny
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rmkit.config.recipe import Generative
from rmkit.data.conversations import Conversation, Message, messages
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.chat_template import DEFAULT_DATE
from rmkit.encoding.tokenizer import ensure_pad_token, load_tokenizer
from rmkit.errors import RmkitError
from rmkit.reward_models import make_reward_model

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
VISION = {name + suffix for name in ("idefics3", "llava_next", "smolvlm") for suffix in ("", "_training")}
TEXT = [path for path in TEMPLATES if path.stem not in VISION]
MARKUP = re.compile(r"<\|[^<>|'\"{}\s]+\|?>|<[a-z_]+\|>|<｜[^｜<>]+｜>|\[/?[A-Z_]{3,}\]|</?[a-z_]+>")
CONTENT_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[sep]", "\n\n", "assistant"]
DATE = "26 Jul 2024"
# Before these templates were read as they are now, they gave these ids (sha256 of ids, start, and verification ids).
RECORDED = json.loads((Path(__file__).parent / "template_ids.json").read_text())
RECORDED_TEXTS = [
    ("x", "y"),
    ("Is 2 + 2 = 4?\n", "4."),
    ("a\n", " b "),
    ("two\n\nlines", "<think>\nhm\n</think>\n\nfour"),
    ("<|im_end|> été", "ö</s>"),
    ("x", "<think>\nhm"),
]
THOUGHTS = "<think>\nhm\n</think>\n\nfour"


def by_name(path):
    return path.stem


def finished(backend, template):
    """A tokenizer with the tokens that a template writes."""
    special = sorted({*MARKUP.findall(template), "<pad>", "<bos>", "<eos>"} - set(CONTENT_TOKENS))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(each, normalized=False) for each in CONTENT_TOKENS])
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in special])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )
    made.chat_template = template
    return made


def of_bytes(path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({each: number for number, each in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return finished(backend, path.read_text())


def trained(path):
    """A BPE tokenizer trained on the template's own words, so that texts could merge where prompt and response meet."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [path.read_text(), *["assistant\n\nfour\n\n b \n\n<think>\n\n</think>\n\n4.", "user\nWhat? Because."] * 9]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    return finished(backend, path.read_text())


def rendered(tokenizer, prompt, response, template=None):
    """The whole conversation as transformers renders it, at a fixed date."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    template = re.sub(r"strftime_now\([^)]*\)", "'2024-07-26'", template or tokenizer.chat_template)
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, date_string=DATE)


def parts(encoder, prompt, response):
    (sequence,) = encoder.response_sequences([prompt], [response])
    decode = encoder.tokenizer.decode
    return decode(sequence.ids[: sequence.response_start]), decode(sequence.ids[sequence.response_start :])


def test_the_text_templates_are_all_but_six():
    assert len(TEMPLATES) == len(TEXT) + len(VISION)
    assert set(RECORDED) < {path.stem for path in TEXT}


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem in RECORDED], ids=by_name)
def test_ids_are_as_they_were(path):
    encoder = ChatEncoder(of_bytes(path), DATE)
    for (prompt, response), recorded in zip(RECORDED_TEXTS, RECORDED[path.stem], strict=True):
        if recorded is not None:
            (sequence,) = encoder.response_sequences([prompt], [response])
            (asked,) = encoder.verification_sequences([prompt], [response])
            content = repr((sequence.ids, sequence.response_start, asked.ids))
            assert hashlib.sha256(content.encode()).hexdigest()[:12] == recorded


@pytest.mark.parametrize("path", TEXT, ids=by_name)
def test_every_text_template_encodes(path):
    """Prompt and response together are the whole rendering, in ids as well, unless line breaks would merge."""
    tokenizer = trained(path)
    encoder = ChatEncoder(tokenizer, DATE)
    end = "<|user|>" if path.stem == "glm4moe" else ""
    for prompt, response in [("x", "y"), ("What?\n", "4."), ("a\n", " b "), ("two\n\nlines", "Because.\n\nYes")]:
        (sequence,) = encoder.response_sequences([prompt], [response])
        whole = rendered(tokenizer, prompt, response) + end
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        before, after = parts(encoder, prompt, response)
        assert before + after == whole
        assert prompt.strip() in before
        assert response.strip() in after
        if re.match(r"qwen3_(5_think|6|8)", path.stem):  # the generation prompt ends in "<think>\n"
            breaks = sequence.response_start - 1
            assert tokenizer.convert_ids_to_tokens(sequence.ids[breaks : breaks + 2]) == ["Ċ", "Ċ"]
            sequence.ids[breaks : breaks + 2] = [tokenizer.convert_tokens_to_ids("\n\n")]
        assert sequence.ids == ids


@pytest.mark.parametrize("path", TEXT, ids=by_name)
def test_thoughts_are_encoded_or_refused(path):
    """A response's own thoughts are part of it, and the empty ones that a template inserts are part of the prompt."""
    tokenizer = of_bytes(path)
    encoder = ChatEncoder(tokenizer, DATE)
    if path.stem in ("deepseek_r1_distill", "deepseekv3", "deepseekv3_training"):  # they drop thoughts
        with pytest.raises(RmkitError, match="drops or changes the response"):
            encoder.response_sequences(["x"], [THOUGHTS])
        return
    before, after = parts(encoder, "x", THOUGHTS)
    end = "<|user|>" if path.stem == "glm4moe" else ""
    assert before + after == rendered(tokenizer, "x", THOUGHTS) + end
    assert "hm" in after
    sequences = encoder.response_sequences(["x", "x", "x"], ["y", THOUGHTS, "y"])
    assert sequences[1] == encoder.response_sequences(["x"], [THOUGHTS])[0]
    assert sequences[0] == sequences[2] == encoder.response_sequences(["x"], ["y"])[0]


CONVERSATIONS = [
    Conversation((Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Why?"))),
    Conversation((Message("system", "Be brief."), Message("user", "Why?"))),
]


@pytest.mark.filterwarnings("ignore:The chat template of .* has no system turn")
@pytest.mark.parametrize("path", TEXT, ids=by_name)
def test_conversations_encode(path):
    """As transformers renders them; where the template has no system turn, the system message opens the user's."""
    tokenizer = of_bytes(path)
    encoder = ChatEncoder(tokenizer, DATE)
    template = re.sub(r"strftime_now\([^)]*\)", "'2024-07-26'", tokenizer.chat_template)
    for prompt in CONVERSATIONS:
        if encoder.folds_system and prompt.turns[0].role == "system":
            prompt = "Be brief.\n\nWhy?"
        whole = [*messages(prompt), {"role": "assistant", "content": "Because."}]
        text = tokenizer.apply_chat_template(whole, chat_template=template, tokenize=False, date_string=DATE)
        assert "".join(parts(encoder, prompt, "Because.")) == text + ("<|user|>" if path.stem == "glm4moe" else "")
    assert encoder.folds_system == (path.stem in ("gemma", "gemma_training"))


def test_a_folded_system_message_is_said_once():
    encoder = ChatEncoder(of_bytes(next(path for path in TEXT if path.stem == "gemma")))
    with pytest.warns(UserWarning, match="has no system turn: a system message becomes the beginning") as said:
        first, second = encoder.response_sequences([CONVERSATIONS[1], "Be brief.\n\nWhy?"], ["y", "y"])
    assert first == second
    assert len(said) == 1


THREE_TURNS = (Message("assistant", "Yes."), Message("user", "Sure?"), Message("assistant", "No doubt."))


@pytest.mark.parametrize("path", TEXT, ids=by_name)
def test_responses_of_several_turns_encode_or_are_refused(path):
    """64 of the 66 templates: the ids of the whole rendering, in which the texts and ends of both turns count."""
    tokenizer = of_bytes(path)
    encoder = ChatEncoder(tokenizer, DATE)
    if path.stem in ("gptoss", "gptoss_training"):  # <|end|> after an earlier turn, <|return|> after the last one
        with pytest.raises(RmkitError, match="ends an earlier turn of the assistant otherwise"):
            encoder.response_sequences(["Hi?"], [THREE_TURNS])
        return
    sequence, plain = encoder.response_sequences(["Hi?"] * 2, [THREE_TURNS, "Yes."])
    template = re.sub(r"strftime_now\([^)]*\)", "'2024-07-26'", tokenizer.chat_template)
    given = [*messages("Hi?"), *messages(THREE_TURNS)]
    text = tokenizer.apply_chat_template(given, chat_template=template, tokenize=False, date_string=DATE)
    text += "<|user|>" if path.stem == "glm4moe" else ""
    assert tokenizer.decode(sequence.ids) == text
    if not re.match(r"qwen3_(5_think|6|8)", path.stem):  # their generation prompt ends in "<think>\n"
        assert sequence.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    ((start, end),) = sequence.gaps
    first, between, last = (
        tokenizer.decode(ids)
        for ids in (sequence.ids[sequence.response_start : start], sequence.ids[start:end], sequence.ids[end:])
    )
    single = tokenizer.decode(plain.ids[plain.response_start :])
    thoughts = r"(<think>)?\s*</think>\s*"  # some templates write them before the last turn only
    earlier = re.sub(thoughts, "", single, count=1).removesuffix("<eos>" if path.stem.startswith("phi3") else "")
    assert re.sub(thoughts, "", first, count=1) == earlier
    assert re.sub(thoughts, "", last, count=1) == re.sub(thoughts, "", single, count=1).replace("Yes.", "No doubt.")
    assert "Sure?" in between
    assert not re.search("Yes|doubt", between)


def refusal(encoder, prompt, response):
    try:
        encoder.response_sequences([prompt], [response])
        return None
    except RmkitError as error:
        return error.cause


FUNCTION = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}, "required": []}}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = json.dumps([{"type": "function", "function": FUNCTION}])
CALLED = (
    Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
    Message("tool", "3", json.dumps({"name": "add", "tool_call_id": "abcdefghi"})),
)


def test_tools_are_encoded_as_the_template_writes_them_or_refused():
    """Of the 66 templates, 46 write tools in a prompt, and 44 also calls of tools with their results."""
    refused = {}
    for path in TEXT:
        tokenizer = of_bytes(path)
        encoder = ChatEncoder(tokenizer, DATE)
        template = re.sub(r"strftime_now\([^)]*\)", "'2024-07-26'", tokenizer.chat_template)
        for name, turns in (("tools", ()), ("calls", CALLED)):
            prompt = Conversation((Message("user", "Add."), *turns), TOOLS)
            cause = refusal(encoder, prompt, "Three.")
            if cause is None:
                given = [*messages(prompt), {"role": "assistant", "content": "Three."}]
                text = tokenizer.apply_chat_template(
                    given, json.loads(TOOLS), chat_template=template, tokenize=False, date_string=DATE
                )
                assert "".join(parts(encoder, prompt, "Three.")) == text + "<|user|>" * (path.stem == "glm4moe")
            else:
                refused.setdefault(name, {})[path.stem] = cause
    silent = {stem for stem, cause in refused["tools"].items() if cause.endswith("does not write tools.")}
    assert silent == refused["tools"].keys()
    assert len(silent) == 20
    others = refused["calls"].keys() - silent
    assert others == {"lfm2", "lfm2_training"}
    assert {refused["calls"][stem] for stem in others} == {"The chat template of this model does not write tool_calls."}


def test_options_of_a_row_reach_the_template():
    """Without thinking, Qwen3's generation prompt holds the empty block, also in a verification prompt."""
    encoder = ChatEncoder(of_bytes(next(path for path in TEXT if path.stem == "qwen3")))
    turn, block = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", "<think>\n\n</think>\n\n"
    prompt = Conversation((Message("user", "x"),), options=json.dumps({"enable_thinking": False}))
    assert parts(encoder, "x", "y") == (turn, block + "y<|im_end|>\n")
    assert parts(encoder, prompt, "y") == (turn + block, "y<|im_end|>\n")
    asked = encoder.verification_sequences(["x", prompt], ["y"] * 2, "x")
    assert [encoder.tokenizer.decode(each.ids) for each in asked] == [turn, turn + block]


NEMOTRON = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>"


@pytest.mark.parametrize(
    ("name", "response", "before", "after"),
    [
        ("deepseekv3", "y", "<bos><｜User｜>x<｜Assistant｜>", "y<｜end▁of▁sentence｜>"),
        ("deepseek_r1_distill_training", "y", "<bos><｜User｜>x<｜Assistant｜>", "y<｜end▁of▁sentence｜>"),
        (
            "deepseek_r1_distill_training",
            THOUGHTS,
            "<bos><｜User｜>x<｜Assistant｜><think>\n",
            "hm\n</think>\n\nfour<｜end▁of▁sentence｜>",
        ),
        ("nemotron_3_nano", "y", NEMOTRON + "</think>", "y<|im_end|>\n"),
        ("nemotron_3_nano", THOUGHTS, NEMOTRON + "\n", "hm\n</think>\n\nfour<|im_end|>\n"),
        ("glm4moe", "y", "[gMASK]<sop><|user|>\nx<|assistant|>", "\n<think></think>\ny<|user|>"),
        (
            "qwen3_5_nothink",
            THOUGHTS,
            "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>",
            "\nhm\n</think>\n\nfour<|im_end|>\n",
        ),
    ],
)
def test_where_a_response_starts(name, response, before, after):
    encoder = ChatEncoder(of_bytes(next(path for path in TEXT if path.stem == name)), DATE)
    assert parts(encoder, "x", response) == (before, after)


@pytest.mark.parametrize("name", ["deepseekv3", "nemotron_3_nano"])
def test_an_answer_follows_where_a_plain_response_would_start(name):
    """The generation prompt opens a thinking block, in which no answer stands."""
    encoder = ChatEncoder(of_bytes(next(path for path in TEXT if path.stem == name)), DATE)
    settings = Generative(verification_prompt="{prompt}{response}", yes_token="Y", no_token="N")
    (asked,) = make_reward_model(settings, encoder).encode(["x"], ["y"])
    assert encoder.tokenizer.decode(asked.ids) == parts(encoder, "xy", "z")[0]


def test_a_response_that_a_template_drops_is_refused_whatever_stands_before_it():
    template = tiny.CHATML.replace("{{ m['content'] }}", "{{ m['content'] if m['content'] != 'assistant' }}")
    tokenizer = tiny.tokenizer("qwen2")
    tokenizer.chat_template = template
    with pytest.raises(RmkitError, match="drops or changes the response 'assistant'"):
        ChatEncoder(tokenizer).response_sequences(["x"], ["assistant"])


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem in VISION], ids=by_name)
def test_vision_templates_are_refused_as_such(path):
    with pytest.raises(RmkitError, match="is for a vision model") as error:
        ChatEncoder(of_bytes(path), DATE)
    assert error.value.remedy == "Set a base.chat_template for text."
    tokenizer = of_bytes(path)
    tokenizer.chat_template = tiny.CHATML
    assert ChatEncoder(tokenizer)


# --- clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("date", "printed"), [(None, "2024-07-26"), ("1 March 2025", "2025-03-01")])
@pytest.mark.parametrize("name", ["gptoss", "muse_glimmer_training"])
def test_a_clock_is_pinned(name, date, printed):
    tokenizer = of_bytes(next(path for path in TEXT if path.stem == name))
    encoder = ChatEncoder(tokenizer, date)
    before, _ = parts(encoder, "x", "y")
    assert f"Current date: {printed}" in before
    assert encoder.date_string == (date or DEFAULT_DATE)
    assert len(encoder.notes) == (date is None)
    same = ChatEncoder(tokenizer, encoder.date_string)  # as a trained model records it
    assert same.template_hash == encoder.template_hash
    assert same.response_sequences(["x"], ["y"]) == encoder.response_sequences(["x"], ["y"])


def chatml(template, architecture="qwen2", **options):
    tokenizer = tiny.tokenizer(architecture, **options)
    tokenizer.chat_template = template
    ensure_pad_token(tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    ("form", "printed"),
    [
        ("%Y-%m-%d", "2024-07-26"),
        ("%d %b %Y", "26 Jul 2024"),
        ("%A, %B %-d %Y %H:%M", "Friday, July 26 2024 00:00"),
        ("%m/%-d/%y", "07/26/24"),
    ],
)
def test_a_pinned_clock_prints_every_format(form, printed):
    """And leaves the rest of the template as it is, which may start with white space."""
    for start in ("", "\n  {% set a = 1 %}\n", "  "):
        tokenizer = chatml(start + f"({{{{ strftime_now('{form}') }}}})" + tiny.CHATML)
        fixed = tokenizer.chat_template.replace(f"{{{{ strftime_now('{form}') }}}}", printed)
        assert "".join(parts(ChatEncoder(tokenizer), "x", "y")) == rendered(tokenizer, "x", "y", fixed)


def test_a_date_in_system_turns_only_is_pinned_too():
    dated = "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%Y') }}{% endif %}" + tiny.CHATML
    encoder = ChatEncoder(chatml(dated))
    assert encoder.date_string == DEFAULT_DATE


def test_a_date_in_the_template_for_tools_is_pinned_too():
    dated = "{{ strftime_now('%Y') }}{{ tools | tojson }}" + tiny.CHATML
    encoder = ChatEncoder(chatml({"default": tiny.CHATML, "tool_use": dated}))
    assert encoder.date_string == DEFAULT_DATE
    (sequence,) = encoder.response_sequences([Conversation((Message("user", "x"),), TOOLS)], ["y"])
    assert encoder.tokenizer.decode(sequence.ids).startswith("2024[{")
    assert parts(encoder, "x", "y")[0].startswith("<|im_start|>user")


def test_a_clock_needs_a_date():
    with pytest.raises(RmkitError, match="'some day' is not a date") as error:
        ChatEncoder(chatml("{{ strftime_now('%Y') }}" + tiny.CHATML), "some day")
    remedies = error.value.remedy.partition("like ")[2].removesuffix(".").split(" or ")
    assert len(remedies) == 2
    for remedy in remedies:
        assert ChatEncoder(chatml("{{ strftime_now('%Y') }}" + tiny.CHATML), remedy)


# --- the end of a response -----------------------------------------------------------------------------------------


def test_a_missing_end_is_what_follows_a_turn():
    glm, written = (
        ChatEncoder(of_bytes(next(path for path in TEXT if path.stem == name)))
        for name in ("glm4moe", "glm4moe_training")
    )
    assert glm.response_sequences(["x"], ["y"]) == written.response_sequences(["x"], ["y"])
    assert glm.suffix_ids == written.suffix_ids
    assert glm.notes == [
        "The chat template of this model ends a response without an end-of-turn token: <|user|> is added, what the "
        "template writes before the next turn."
    ]
    assert written.notes == []


def test_a_missing_end_is_the_eos_where_nothing_follows():
    encoder = ChatEncoder(chatml("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"))
    eos = encoder.tokenizer.eos_token
    assert parts(encoder, "x", "y")[1] == f"assistant: y\n{eos}"
    assert encoder.end_id == encoder.tokenizer.eos_token_id
    assert encoder.notes[0].endswith(f"{eos} is added, the EOS.")


def test_a_response_that_nothing_can_end_is_refused():
    tokenizer = chatml("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(RmkitError, match="has no end-of-turn token"):
        ChatEncoder(tokenizer)


# --- the start of a conversation, and its roles --------------------------------------------------------------------


def test_two_bos_tokens_are_accepted_where_one_opens_every_turn():
    """The template writes them: one starts the text, one the turn."""
    opened = "{{ bos_token }}" + tiny.CHATML
    assert ChatEncoder(chatml(opened, bos_token="<|im_start|>"))
    with pytest.raises(RmkitError, match="starts with two BOS tokens"):
        ChatEncoder(chatml("{{ bos_token }}" + tiny.GEMMA, "gemma2"))


STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must "
    "alternate') }}{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [STRICT, tiny.CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")])
def test_a_system_message_is_folded_where_the_template_has_no_place_for_it(template):
    encoder = ChatEncoder(chatml(template))
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}
    text = encoder.template.render([system, user], add_generation_prompt=True)
    assert encoder.folds_system == (template == STRICT)
    folded = "<|im_start|>user\nBe brief.\n\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    apart = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert text == (folded if encoder.folds_system else apart)
    with pytest.raises(RmkitError, match="roles must alternate"):
        ChatEncoder(chatml(STRICT)).template.render([user, user], add_generation_prompt=True)


# --- named templates -----------------------------------------------------------------------------------------------


def test_named_templates_are_resolved_and_checked(tmp_path):
    """As transformers does: `default`. A list in tokenizer_config.json is such a dictionary."""
    tokenizer = chatml({"default": tiny.CHATML, "tool_use": "tools" + tiny.CHATML})
    sequences = ChatEncoder(tokenizer).response_sequences(["x"], ["y"])
    assert sequences == ChatEncoder(chatml(tiny.CHATML)).response_sequences(["x"], ["y"])
    dated = ChatEncoder(chatml({"default": "{{ strftime_now('%Y') }}" + tiny.CHATML, "tool_use": ""}))
    assert dated.date_string == DEFAULT_DATE
    assert parts(dated, "x", "y")[0].startswith("2024<|im_start|>")
    chatml(tiny.CHATML).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": tiny.CHATML}, {"name": "rag", "template": "rag"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded, _ = load_tokenizer(tmp_path)
    assert ChatEncoder(loaded).response_sequences(["x"], ["y"]) == sequences


def test_named_templates_without_a_default_are_refused():
    with pytest.raises(RmkitError, match="no default") as error:
        ChatEncoder(chatml({"rag": tiny.CHATML}))
    assert "base.chat_template" in error.value.remedy


def test_a_pad_token_that_ends_responses_in_a_named_template_is_replaced():
    tokenizer = chatml({"default": tiny.CHATML}, pad_token="<|im_end|>")
    assert tokenizer.pad_token == "[PAD]"
