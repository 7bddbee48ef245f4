"""Templates and tokenizers of kinds that the trl package does not have: the ids of the whole rendering, or refused."""

from __future__ import annotations

import json
import string
from datetime import datetime
from functools import cache

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from rmkit.config.recipe import Generative
from rmkit.data.conversations import Conversation, Message
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.errors import RmkitError
from rmkit.reward_models.generative import GenerativeRewardModel


def turns(turn="<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", start="<|im_start|>assistant\n", before=""):
    """A template: `before`, a text per message m, and the start of the assistant's turn where one is asked for."""
    return f"{before}{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{start}{{% endif %}}"


PIPES = "<|{{ m.role }}|>{{ m.content }}<|end|>"
CHATML = turns()
DAY = "%A, %B %d, %Y|%Y-%m-%dT%H:%M:%S|%d/%m/%y|100%%|%e %k %l %F %P %C %h %g %j %I %p %-d %-m %-H"
ALTERNATE = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
THINK = "<|im_start|>assistant\n<think>\n"
EMPTY_THOUGHTS = "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
TEMPLATES = {
    "chatml": CHATML,
    "clock": turns(before=f"<|im_start|>system\n{{{{ strftime_now('{DAY}') }}}}<|im_end|>\n"),
    "clock by keyword": turns(before="{{ strftime_now(format='%Y') | int + 1 }}"),
    "prefix": turns(before="{{ bos_token }}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"),
    "thinking": turns(start=THINK),
    "empty thoughts": turns("<|im_start|>{{ m.role }}\n" + EMPTY_THOUGHTS + "{{ m.content }}<|im_end|>\n"),
    "history without thoughts": turns(
        "<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n", THINK
    ),
    "BOS as opener": turns(
        "{{ bos_token }}{{ m.role }}\n{{ m.content }}{{ eos_token }}\n", "{{ bos_token }}assistant\n"
    ),
    "system refused": turns(
        PIPES, "<|assistant|>", "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    ),
    "system dropped": turns("{% if m.role != 'system' %}" + PIPES + "{% endif %}", "<|assistant|>"),
    "alternate": ALTERNATE,
    "stripped": turns("<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n", "<|assistant|>\n"),
    "squeezed": turns("<|{{ m.role }}|>{{ m.content.split() | join(' ') }}<|end|>", "<|assistant|>"),
    "no generation prompt": turns(PIPES, ""),
    "always a generation prompt": turns(PIPES, "") + "<|assistant|>",
    "generation tags": turns(
        "<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|end|>{% endif %}",
        "<|assistant|>",
    ),
    "missing end": turns("{{ m.role }}: {{ m.content }}\n", "assistant:"),
    "end between turns": turns(
        "<|{{ m.role }}|>{{ m.content }}{% if not loop.last %}{{ eos_token }}{% endif %}",
        "{{ eos_token }}<|assistant|>",
    ),
}
FOLDS = {"system refused", "system dropped", "alternate"}
REFUSED = {
    "two BOS": (turns(before="{{ bos_token }}{{ bos_token }}"), "starts with two BOS tokens"),
    "looks ahead": (
        turns("{% if loop.last %}Last. {% endif %}" + PIPES, "<|assistant|>"),
        "renders a prompt differently",
    ),
    "counts": (turns(PIPES, "<|assistant|>", "{{ messages | length }}"), "renders a prompt differently"),
    "upper case": (turns("{{ m.content | upper }}<|end|>"), "renders a prompt differently"),
    "empty": ("", "drops or changes the prompt"),
    "syntax": ("{% for m in messages %}", "The chat template of .* fails"),
}
WORDS = ["user assistant system Today is You are a helpful assistant. What is 2 + 2? It is 4. Why? Because x y a b"] * 3
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "</s>", "<pad>"]
LETTERS = [each for each in string.printable if not each.isspace()]
TEXTS = [
    ("x", "y"),
    ("What is 2 + 2?", "It is 4."),
    ("a\n", " b "),
    ("two\n\nlines", "Because.\n\nYes"),
    ("x", "<|end|>"),
]


def trained(model, trainer, pre_tokenizer, normalizer=None):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator(WORDS, trainer)
    return backend


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    return trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))


def unigram(scheme):
    trainer = trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], initial_alphabet=LETTERS, show_progress=False
    )
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(prepend_scheme=scheme))


def llama2():
    """A space before every text, and after every special token."""
    pieces = dict.fromkeys(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS])
    numbers = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(numbers, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


def word_piece():
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["<unk>"], initial_alphabet=LETTERS, show_progress=False
    )
    normalizer = normalizers.BertNormalizer(lowercase=True)
    return trained(models.WordPiece(unk_token="<unk>"), trainer, pre_tokenizers.BertPreTokenizer(), normalizer)


TOKENIZERS = {
    # how; the special tokens that it names; whether it adds a BOS to a text
    "bytes": (byte_level, {"bos_token": "<s>"}, False),
    "bytes without BOS": (byte_level, {}, False),
    "bytes, BOS added": (byte_level, {"bos_token": "<s>"}, True),
    "unigram first": (lambda: unigram("first"), {"bos_token": "<s>", "unk_token": "<unk>"}, True),
    "unigram always": (lambda: unigram("always"), {"bos_token": "<s>", "unk_token": "<unk>"}, False),
    "unigram never": (lambda: unigram("never"), {"bos_token": "<s>", "unk_token": "<unk>"}, False),
    "Llama 2": (llama2, {"bos_token": "<s>", "unk_token": "<unk>"}, True),
    "word piece": (word_piece, {"bos_token": "<s>", "unk_token": "<unk>"}, True),
    "word piece, unknown not named": (word_piece, {"bos_token": "<s>"}, False),
    "unigram, unknown not named": (lambda: unigram("never"), {}, False),
}


@cache
def saved(kind):
    backend = TOKENIZERS[kind][0]()
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in [*SPECIAL, "<s>"]])
    return backend.to_str()


def tokenizer(kind, template):
    _, names, adds_bos = TOKENIZERS[kind]
    backend = Tokenizer.from_str(saved(kind))
    if adds_bos:
        start = [("<s>", backend.token_to_id("<s>"))]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=start)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", **names)
    made.chat_template = template
    return made


def check_ids(encoder, end=""):
    """Prompt and response together have the ids of the whole rendering; a spelled control token is other ids."""
    for prompt, response in TEXTS:
        (sequence,) = encoder.response_sequences([prompt], [response])
        conversation = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        template = encoder.tokenizer.chat_template
        for date in ("%Y') | int", f"{DAY}')"):
            day = datetime(2024, 7, 26).strftime(date.partition("'")[0])
            template = template.replace(f"strftime_now(format='{date}", f"'{day}' | int")
            template = template.replace(f"strftime_now('{date}", f"'{day}'")
        whole = encoder.tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False) + end
        ids = encoder.tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert (sequence.ids == ids) == (response != "<|end|>"), (prompt, response)
        assert sequence.ids[-len(encoder.suffix_ids) :] == encoder.suffix_ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_encode(name):
    encoder = ChatEncoder(tokenizer("bytes", TEMPLATES[name]))
    missing = name in ("missing end", "end between turns")
    check_ids(encoder, "</s>" if missing else "")
    assert encoder.folds_system == (name in FOLDS)
    said = " ".join(encoder.notes)
    assert ("prints today's date: 26 Jul 2024 is used" in said) == name.startswith("clock")
    assert ("without an end-of-turn token: </s> is added" in said) == missing
    turn, reply = Message("user", "Hi."), Message("assistant", "Hello.")
    assert len(encoder.response_sequences([Conversation((turn, reply, turn))], ["y"])) == 1


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_cannot_be_read_are_refused(name):
    template, cause = REFUSED[name]
    with pytest.raises(RmkitError, match=cause) as refused:
        ChatEncoder(tokenizer("bytes", template))
    assert "base.chat_template" in refused.value.remedy


READ_BY_ALL = ["chatml", "prefix", "thinking", "alternate", "stripped", "no generation prompt", "missing end"]


@pytest.mark.parametrize("name", READ_BY_ALL)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers_encode(kind, name):
    encoder = ChatEncoder(tokenizer(kind, TEMPLATES[name].replace("{{ bos_token }}", "<s>")))
    check_ids(encoder, "</s>" if name == "missing end" else "")


def test_a_template_that_needs_a_bos_is_refused_by_a_tokenizer_without_one():
    template = ALTERNATE.replace("{{ bos_token }}", "{{ bos_token + '' }}")
    with pytest.raises(RmkitError, match="'bos_token' is undefined"):
        ChatEncoder(tokenizer("bytes without BOS", template))


def test_a_space_in_front_of_every_text_is_none_in_front_of_a_response():
    """The ids by hand, and those of tokenizing the response on its own, as the control."""
    encoder = ChatEncoder(tokenizer("Llama 2", turns("<|{{ m.role }}|>\n{{ m.content }}<|end|>", "<|assistant|>\n")))
    (sequence,) = encoder.response_sequences(["x"], ["y z"])
    tokens = encoder.tokenizer.convert_ids_to_tokens
    assert tokens(sequence.ids[sequence.response_start - 2 :]) == ["▁", "<0x0A>", "y", "▁", "z", "<|end|>"]
    assert tokens(encoder.tokenizer("y z", add_special_tokens=False)["input_ids"]) == ["▁", "y", "▁", "z"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_plain_template_is_one_whose_response_has_the_ids_of_its_text(kind):
    """What model cards rely on: prompt and response tokenised on their own, as in hub/cards/encode.md."""
    encoder = ChatEncoder(tokenizer(kind, turns("<|{{ m.role }}|>\n{{ m.content }}<|end|>", "<|assistant|>\n")))
    asked = [{"role": "user", "content": "x"}]
    answered = [*asked, {"role": "assistant", "content": "It is 4."}]
    prompt = encoder.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    text = encoder.tokenizer.apply_chat_template(answered, tokenize=False)
    prompt_ids, ids = encoder.tokenizer([prompt, text[len(prompt) :]], add_special_tokens=False)["input_ids"]
    (sequence,) = encoder.response_sequences(["x"], ["It is 4."])
    assert (sequence.ids == prompt_ids + ids) == encoder.plain_template


SYSTEM, USER, REPLY = Message("system", "Be kind."), Message("user", "Why?"), Message("assistant", "It is 4.")


@pytest.mark.parametrize("name", ["system refused", "system dropped"])
def test_a_system_message_is_folded_into_the_first_user_message(name):
    """Also where the assistant speaks first."""
    encoder = ChatEncoder(tokenizer("bytes", TEMPLATES[name]))
    folded = Message("user", "Be kind.\n\nWhy?")
    for before in [(), (REPLY,)]:
        given, wanted = (Conversation(turns) for turns in ((SYSTEM, *before, USER), (*before, folded)))
        with pytest.warns(UserWarning, match="the beginning of the first user message"):
            found = encoder.response_sequences([given], ["Because."])
        assert found == encoder.response_sequences([wanted], ["Because."])
        encoder = ChatEncoder(tokenizer("bytes", TEMPLATES[name]))  # which has not warned yet


def test_template_options_may_have_any_name():
    encoder = ChatEncoder(tokenizer("bytes", CHATML + "{# clock #}"))
    prompt = Conversation((USER,), options='{"clock": "x", "options": 1}')
    with pytest.warns(UserWarning, match="does not read options of chat_template_kwargs"):
        found = encoder.response_sequences([prompt], ["y"])
    assert found == encoder.response_sequences(["Why?"], ["y"])


def test_answers_that_template_options_change_are_refused():
    """A space in front of the answer is part of its token, unless the options end the prompt in a text."""
    opening = "{% if terse %}A:{% endif %}"
    template = (
        f"{{% for m in messages %}}<|{{{{ m.role }}}}|>{{% if m.role == 'assistant' %}}{opening}{{% endif %}}"
        f"{{{{ m.content }}}}<|end|>{{% endfor %}}{{% if add_generation_prompt %}}<|assistant|>{opening}{{% endif %}}"
    )
    settings = Generative(type="generative", yes_token="a", no_token="2")
    prompt = Conversation((USER,), options='{"terse": true}')
    changed = GenerativeRewardModel(settings, ChatEncoder(tokenizer("unigram always", template)))
    for _ in range(2):
        with pytest.raises(
            RmkitError, match=r'chat_template_kwargs \{"terse": true\} the answers .a. and .2.'
        ) as refused:
            changed.encode(["Why?", prompt], ["4.", "4."])
    assert refused.value.remedy.startswith("Remove chat_template_kwargs")
    assert len(changed.encode(["Why?", "Why?"], ["4.", "4."])) == 2
    same = GenerativeRewardModel(settings, ChatEncoder(tokenizer("unigram first", template)))
    assert len(same.encode(["Why?", prompt], ["4.", "4."])) == 2


@pytest.mark.parametrize("form", ["dict", "list"])
def test_named_templates(tmp_path, form):
    """The default is read, with its clock pinned; without a default the remedy is a file."""
    named = {"default": TEMPLATES["clock"], "rag": "Documents."}
    tokenizer("bytes", CHATML).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "config.json").write_text("{}")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())

    def load(named, **options):
        listed = [{"name": name, "template": template} for name, template in named.items()]
        content = config | {"chat_template": named if form == "dict" else listed}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
        return ChatEncoder(load_tokenizer(tmp_path, **options)[0])

    texts = [["What?"], ["Because."]]
    one = ChatEncoder(tokenizer("bytes", TEMPLATES["clock"]))
    assert load(named).response_sequences(*texts) == one.response_sequences(*texts)
    with pytest.raises(RmkitError, match="multiple chat templates with no default"):
        load({"chat": CHATML, "rag": CHATML})
    (tmp_path / "own.jinja").write_text(CHATML)
    found = load({"chat": CHATML, "rag": CHATML}, chat_template=tmp_path / "own.jinja")
    assert found.response_sequences(*texts) == ChatEncoder(tokenizer("bytes", CHATML)).response_sequences(*texts)


def test_a_tokenizer_without_a_fast_version():
    """ByT5's needs no files. It cannot read a spelled control token as text."""
    template = turns("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n")
    tokenizer = ByT5Tokenizer(extra_ids=0, additional_special_tokens=["<|end|>", "<|user|>", "<|assistant|>"])
    tokenizer.chat_template = template
    assert not tokenizer.is_fast
    encoder = ChatEncoder(tokenizer)
    (sequence,) = encoder.response_sequences(["a\n"], [" b "])
    whole = "<|user|>\na\n<|end|>\n<|assistant|>\n b <|end|>\n"
    assert sequence.ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    with pytest.raises(RmkitError, match="no fast version") as refused:
        encoder.response_sequences(["x"], ["<|end|>"])
    assert refused.value.remedy == "Set data.special_tokens (or --special-tokens) to keep."
    kept = ChatEncoder(tokenizer, special_tokens="keep")
    assert len(kept.response_sequences(["x"], ["<|end|>"])) == 1


def test_a_response_of_several_turns_has_the_ids_of_the_whole_conversation():
    """Also where the tokenizer puts a space in front of every text: each of the assistant's turns has none."""
    encoder = ChatEncoder(tokenizer("Llama 2", turns("<|{{ m.role }}|>\n{{ m.content }}<|end|>", "<|assistant|>\n")))
    roles = ("assistant", "user", "assistant")
    response = tuple(Message(role, text) for role, text in zip(roles, ("y z", "Why?", "Because."), strict=True))
    (sequence,) = encoder.response_sequences(["x"], [response])
    whole = [{"role": "user", "content": "x"}, *({"role": turn.role, "content": turn.content} for turn in response)]
    text = encoder.tokenizer.apply_chat_template(whole, tokenize=False)
    assert sequence.ids == encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
