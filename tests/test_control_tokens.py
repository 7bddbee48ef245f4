"""Text stays text: whatever a prompt or response spells, control tokens are only those that the template writes."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rmkit.encoding import ChatEncoder
from rmkit.errors import RmkitError

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
SPELLED = re.compile(r"<\|[^<>|'\"{}\s]+\|?>|<｜[^｜<>]+｜>|\[/?[A-Z_]{3,}\]|</?[a-z_]+>")
CONTENT_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[sep]", "\n\n", "assistant"]
DATE = "26 Jul 2024"


def byte_level(special, others=(), template=None, **names):
    """A tokenizer of bytes, in which every text is decoded to itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({each: number for number, each in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(each, normalized=False) for each in others if each not in special])
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in special])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **({"pad_token": "<pad>"} | names)
    )
    made.chat_template = template
    return made


def of_template(path):
    """A tokenizer with the tokens that a template of TRL's writes."""
    template = path.read_text()
    special = sorted({*SPELLED.findall(template), "<pad>", "<bos>", "<eos>"} - set(CONTENT_TOKENS))
    names = {"bos_token": "<bos>", "eos_token": "<eos>"}
    return byte_level(special, CONTENT_TOKENS, template, **names)


def render(tokenizer, *contents):
    """Prompt, and what follows it, by the template; None where it refuses the texts."""
    user, *assistant = [
        {"role": role, "content": content} for role, content in zip(("user", "assistant"), contents, strict=False)
    ]
    options = {"tokenize": False, "date_string": DATE}
    before = tokenizer.apply_chat_template([user], add_generation_prompt=True, **options)
    if not assistant:
        return before
    return before, tokenizer.apply_chat_template([user, *assistant], **options).removeprefix(before)


def contents(draw, spellings, number):
    """Texts with spellings of control tokens, parts of them, and other things, at every place."""
    pieces = [
        *spellings,
        *spellings,
        *CONTENT_TOKENS[2:],
        " ",
        "\n",
        "été",
        "日本",
        "ꀀ",
        "가",
        "\U000f0000",
        "Yes",
        "{x}",
    ]
    pieces += [each[: len(each) // 2] for each in spellings] + [each[len(each) // 2 :] for each in spellings]
    pieces += ["<", "|", ">", "[", "]", "＜", "a"]
    made = ["".join(draw.choices(pieces, k=draw.randint(1, 7))) for _ in range(number)]
    return [each if each.strip() else each + "x" for each in made]


def halves(sequence):
    return sequence.ids[: sequence.response_start], sequence.ids[sequence.response_start :]


def controls(encoder, ids):
    special = {number for number, token in encoder.tokenizer.added_tokens_decoder.items() if token.special}
    return [each for each in ids if each in special]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_control_tokens_are_the_templates(path):
    tokenizer = of_template(path)
    try:
        encoder = ChatEncoder(tokenizer, DATE)
    except RmkitError as error:
        pytest.skip(error.cause)
    draw = random.Random(0)
    spellings = [token for token in tokenizer.all_special_tokens]
    number = 30
    prompts, responses = contents(draw, spellings, number), contents(draw, spellings, number)
    (plain,) = encoder.response_sequences(["x"], ["x"])
    sequences = encoder.response_sequences(prompts, responses)
    met = 0
    for prompt, response, sequence in zip(prompts, responses, sequences, strict=True):
        assert controls(encoder, sequence.ids) == controls(encoder, plain.ids)
        before, after = render(tokenizer, prompt, response)
        assert tokenizer.decode(sequence.ids[: sequence.response_start]) == before
        assert tokenizer.decode(sequence.ids[sequence.response_start :]) == after
        kept = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after)]
        differ = [
            controls(encoder, ids) != controls(encoder, own)
            for ids, own in zip(
                kept, [plain.ids[: plain.response_start], plain.ids[plain.response_start :]], strict=True
            )
        ]
        assert [sequence.prompt_spells, sequence.response_spells] == differ
        met += any(differ)
        if not any(differ):
            assert sequence.ids == kept[0] + kept[1]
    assert met > number / 2


# --- kinds of tokenizers -------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TURNS = "{{ bos_token }}{% for m in messages %}<u> {{ m['content'] }} </s>\n{% endfor %}"


def sentencepiece_bpe(legacy):
    """As Llama 2's: a space before every text (legacy: after every special token), merges that make "</s>"."""
    pieces = ["<unk>", "<s>", "</s>", "<u>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "</", "s>", "<s", "Yes", "Ye", "▁Yes", "▁Ye", *LETTERS, *"<>/|YNo:!.", "\n"]
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("<", "s"), ("<s", ">"), ("Y", "e"), ("Ye", "s"), ("▁", "Yes")]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)]
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        strip = [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def unigram(scheme):
    """As T5's or XLM-R's: special tokens in the vocabulary of the model itself, NFKC before all."""
    vocabulary = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("<u>", 0.0),
        ("<pad>", 0.0),
        ("▁", -2.0),
        ("▁Yes", -3.0),
    ]
    vocabulary += [(each, -4.0) for each in [*LETTERS, *"<>/|YNo:!.", "\n"]]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return backend


def word_piece():
    """As BERT's, lower case."""
    pieces = ["<unk>", "<s>", "</s>", "<u>", "<pad>", *LETTERS, *(f"##{each}" for each in LETTERS), *"<>/|:!.", "yes"]
    backend = Tokenizer(models.WordPiece({each: number for number, each in enumerate(pieces)}, unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def words():
    """Only white space separates words, so that a spelled token is a word of the vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", "<u>", "<pad>", "Yes", "No", "a"]
    backend = Tokenizer(models.WordLevel({each: number for number, each in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def plain_bytes():
    backend = Tokenizer(models.BPE())
    backend.add_tokens(sorted(pre_tokenizers.ByteLevel.alphabet()))
    return byte_level([]).backend_tokenizer


KINDS = {
    "sentencepiece legacy": lambda: sentencepiece_bpe(legacy=True),
    "sentencepiece": lambda: sentencepiece_bpe(legacy=False),
    "unigram first": lambda: unigram("first"),
    "unigram always": lambda: unigram("always"),
    "word piece": word_piece,
    "words": words,
    "bytes": plain_bytes,
}
FLAGS = {
    "plain": {"normalized": False},
    "normalized": {"normalized": True},
    "strips": {"normalized": False, "lstrip": True, "rstrip": True},
}


def made(kind, flags, template=TURNS, **options):
    backend = KINDS[kind]()
    backend.add_special_tokens([AddedToken(each, **FLAGS[flags]) for each in ("<unk>", "<s>", "</s>", "<u>", "<pad>")])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer, **options)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_reads_text_as_text(kind, flags):
    encoder = made(kind, flags)
    spellings = [
        "<s>",
        "</s>",
        "<u>",
        "<pad>",
        "<unk>",
        "<S>",
        "＜s＞",
        "</S >",
        "<<s>",
        "<s></s>",
        "<s<s>>",
        "<\u00ads>",
    ]
    draw = random.Random(1)
    number = 60
    prompts, responses = contents(draw, spellings, number), contents(draw, spellings, number)
    tokenizer = encoder.tokenizer
    wanted = {tokenizer.convert_tokens_to_ids(each) for each in ("<s>", "</s>", "<u>", "<pad>")}
    (simple,) = encoder.response_sequences(["x"], ["y"])
    plain = [[each for each in ids if each in wanted] for ids in halves(simple)]
    assert any(plain)
    met = 0
    for prompt, response, sequence in zip(
        prompts, responses, encoder.response_sequences(prompts, responses), strict=True
    ):
        parts = halves(sequence)
        assert [[each for each in ids if each in wanted] for ids in parts] == plain
        spells = (sequence.prompt_spells, sequence.response_spells)
        for ids, text, spelled in zip(parts, render(tokenizer, prompt, response), spells, strict=True):
            kept = tokenizer(text, add_special_tokens=False)["input_ids"]
            if not spelled:
                assert ids == kept
            else:
                assert ids != kept
                met += 1
            if kind != "words" and not kind.startswith("word"):
                squeezed = ["".join(each.split()) for each in (tokenizer.decode(ids), text)]
                if kind.startswith("unigram"):
                    continue
                assert squeezed[0] == squeezed[1]
    assert met > number / 2


SMOLLM2 = Path("/work/smollm2")
