"""The encoder: the ids of texts, which templates and tokenizers are refused, and the embedding rows of new tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmkit.config.recipe import VERIFICATION_PROMPT, Explicit, Generative, Implicit
from rmkit.data.conversations import Conversation, Message
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.chat_template import DEFAULT_DATE
from rmkit.encoding.tokenizer import (
    PAPER_CHAT_TEMPLATE,
    PAPER_SPECIAL_TOKENS,
    add_rows,
    ensure_pad_token,
    load_tokenizer,
)
from rmkit.errors import RmkitError
from rmkit.reward_models import make_reward_model

DATE = "26 Jul 2024"
PROMPT, RESPONSE = "How do I bake {bread}?\n", "Mix flour, été. Wait."
CONTENT = "{{ m['content'] }}"
SUFFIXES = {
    "llama": ["<|eot|>"],
    "qwen2": ["<|im_end|>", "\n"],
    "gemma2": ["<end_of_turn>", "\n"],
    "gpt_neox": ["[EOS]"],
}


def ready(architecture="qwen2", template=None, **options):
    """A tokenizer as `load_tokenizer` prepares it, with another template."""
    tokenizer = tiny.tokenizer(architecture, **options)
    if template is not None:
        tokenizer.chat_template = template
    elif tokenizer.chat_template is None:
        tokenizer.add_special_tokens({"extra_special_tokens": PAPER_SPECIAL_TOKENS})
        tokenizer.chat_template = PAPER_CHAT_TEMPLATE
    ensure_pad_token(tokenizer)
    return tokenizer


def encoder(architecture="qwen2", template=None, **options):
    return ChatEncoder(ready(architecture, template, **options), DATE if architecture == "llama" else None)


def refused(architecture="qwen2", template=None, date=None, **options):
    with pytest.raises(RmkitError) as error:
        ChatEncoder(ready(architecture, template, **options), date)
    assert error.value.cause
    assert "\n" not in error.value.cause + error.value.remedy
    return error.value


@pytest.fixture(params=tiny.ARCHITECTURES)
def architecture(request):
    return request.param


# --- ids -----------------------------------------------------------------------------------------------------------


def test_a_sequence_is_the_prompts_ids_then_the_responses(architecture):
    made = encoder(architecture)
    user = {"role": "user", "content": PROMPT}
    render = made.tokenizer.apply_chat_template
    before = render([user], tokenize=False, add_generation_prompt=True, date_string=DATE)
    whole = render([user, {"role": "assistant", "content": RESPONSE}], tokenize=False, date_string=DATE)
    (sequence,) = made.response_sequences([PROMPT], [RESPONSE])
    prompt_ids, response_ids = (
        made.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, whole.removeprefix(before))
    )
    assert sequence.ids == prompt_ids + response_ids
    assert sequence.response_start == len(prompt_ids)
    assert made.tokenizer.decode(sequence.ids) == whole
    assert made.tokenizer.decode(made.suffix_ids) == "".join(SUFFIXES[architecture])


def test_the_prompts_ids_do_not_depend_on_the_response(architecture):
    """Tokenized together, a space or a line break could merge the two."""
    made = encoder(architecture)
    responses = [RESPONSE, "\nYes", " Yes", "assistant", "1"]
    sequences = made.response_sequences([PROMPT] * 5, responses)
    assert len({tuple(sequence.ids[: sequence.response_start]) for sequence in sequences}) == 1
    for sequence in sequences:
        assert sequence.ids[-len(made.suffix_ids) :] == made.suffix_ids
        assert len(sequence) > sequence.response_start + len(made.suffix_ids)


def test_batches_and_single_texts_are_the_same(architecture):
    made = encoder(architecture)
    prompts, responses = [PROMPT, "why?", PROMPT], ["a", RESPONSE, "{response}"]
    together = made.response_sequences(prompts, responses)
    assert together == [made.response_sequences([p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
    assert made.response_sequences([], []) == []


@pytest.mark.parametrize("response", ["a ", "a\n", "a \n\n"])
def test_a_space_before_the_end_of_turn_may_merge_with_the_response(response):
    made = encoder(template=tiny.CHATML.replace("<|im_end|>\n", "\n<|im_end|>\n"))
    (sequence,) = made.response_sequences(["x"], [response])
    assert made.tokenizer.decode(sequence.ids[sequence.response_start :]) == f"{response}\n<|im_end|>\n"


def test_the_template_hash_tells_templates_and_dates_apart():
    hashes = [
        ChatEncoder(ready(template=template), date).template_hash
        for template, date in [(None, None), (None, DATE), ("{# another #}" + tiny.CHATML, None), (None, None)]
    ]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


# --- templates -----------------------------------------------------------------------------------------------------


def test_a_second_bos_from_the_template_is_refused():
    assert "starts with two BOS tokens (<bos>)" in refused("gemma2", "{{ bos_token }}" + tiny.GEMMA).cause


def test_a_bos_at_the_start_of_every_turn_is_accepted():
    """SmolLM2 has one."""
    made = ChatEncoder(ready("qwen2", bos_token="<|im_start|>"))
    (sequence,) = made.response_sequences(["How?"], ["Yes"])
    assert sequence.ids.count(made.tokenizer.bos_token_id) == 2
    assert sequence == ChatEncoder(ready("qwen2")).response_sequences(["How?"], ["Yes"])[0]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_templated_texts_are_read_as_text(architecture):
    made = encoder(architecture)
    templated = made.tokenizer.apply_chat_template(
        [{"role": "user", "content": "How?"}], tokenize=False, add_generation_prompt=True, date_string=DATE
    ).strip()
    bos = made.tokenizer.bos_token_id
    (sequence,) = made.response_sequences([templated], ["Yes"])
    assert sequence.ids.count(bos) == 1
    assert (sequence.prompt_spells, sequence.response_spells) == (True, False)
    assert templated in made.tokenizer.decode(sequence.ids)
    assert made.verification_sequences([templated], ["Yes"])[0].ids.count(bos) == 1
    assert made.is_templated(templated)
    assert not made.is_templated("How?")


@pytest.mark.parametrize("ending", ["", "\n", "</s>", " END"])
def test_a_response_without_an_end_of_turn_token_ends_where_the_next_turn_opens(ending):
    made = encoder(template=tiny.CHATML.replace("<|im_end|>\n", ending))
    (sequence,) = made.response_sequences(["x"], ["y"])
    assert made.tokenizer.decode(sequence.ids).endswith(f"y{ending}<|im_start|>")
    assert "<|im_start|> is added" in made.notes[0]


def test_a_template_that_ends_only_some_responses_is_refused():
    ends = "{% if m['content'] | length < 30 %}<|im_end|>{% endif %}"
    made = encoder(template=tiny.CHATML.replace("<|im_end|>\n", ends))
    with pytest.raises(RmkitError, match="lacks the end-of-turn token"):
        made.response_sequences(["x"], ["long " * 20])


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("{% if m['role'] == 'assistant' %}{{ m['content'] }}{% endif %}", "prompt"),
        ("{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}", "response"),
        ("{{ m['content'] | upper }}", "prompt"),
        ("{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}{{ m['content'] | title }}{% endif %}", "response"),
        ("", "prompt"),
    ],
)
def test_a_template_that_drops_or_changes_texts_is_refused(content, kind):
    assert f"drops or changes the {kind}" in refused(template=tiny.CHATML.replace(CONTENT, content)).cause


def test_a_template_that_truncates_some_texts_is_refused_on_those():
    made = encoder(template=tiny.CHATML.replace(CONTENT, "{{ m['content'][:30] }}"))
    with pytest.raises(RmkitError, match="changes the response"):
        made.response_sequences(["x"], ["y" * 100])
    made = encoder(template=tiny.CHATML.replace(CONTENT, "{{ m['content'].split('</think>')[-1] }}"))
    with pytest.raises(RmkitError, match="changes the response"):
        made.response_sequences(["x"], ["Because.</think>Yes"])


def test_templates_may_strip_whitespace():
    made = encoder("gemma2")
    assert made.response_sequences([" x\n"], ["\ny "]) == made.response_sequences(["x"], ["y"])


def test_a_template_that_looks_back_is_refused():
    """The prompt must render the same with and without a response after it."""
    error = refused(template="{{ messages | length }}" + tiny.CHATML)
    assert "renders a prompt differently" in error.cause


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ raise_exception('') }}", "fails"),
        ("{{ raise_exception('two\nlines') }}", "two"),
        ("{{ messages[7]['content'] }}", "fails"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages.nothing() }}", "fails"),
        ("{% for", "fails"),
    ],
)
def test_the_error_of_a_failing_template_is_shown(broken, cause):
    error = refused(template=tiny.CHATML + broken)
    assert "The chat template of" in error.cause
    assert cause in error.cause


# --- dates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "today",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% set d = strftime_now('%Y-%m-%d') %}{{ d[:4] }}",
        "{% if not date_string is defined %}{% set date_string = strftime_now('%B') %}{% endif %}{{ date_string }}",
        "{% if strftime_now is defined %}{{ strftime_now('%B') | upper }}{% endif %}",
    ],
)
def test_todays_date_is_a_fixed_one_and_said(today):
    made = encoder(template=today + tiny.CHATML)
    assert made.date_string == DEFAULT_DATE
    assert "prints today's date: 26 Jul 2024 is used instead" in made.notes[0]
    assert made.tokenizer.decode(made.response_sequences(["x"], ["y"])[0].ids).lower().startswith(("26", "2024", "jul"))


def test_a_date_after_the_response_is_found_too():
    dated = "{% if m['role'] == 'assistant' %}{{ strftime_now('%Y') }}{% endif %}<|im_end|>"
    made = encoder(template=tiny.CHATML.replace("<|im_end|>", dated))
    assert made.tokenizer.decode(made.response_sequences(["x"], ["y"])[0].ids).endswith("y2024<|im_end|>\n")


def test_a_pinned_date_is_printed():
    made = ChatEncoder(ready("llama"), "1 Mar 2025")
    (sequence,) = made.response_sequences(["x"], ["y"])
    assert "Today Date: 1 Mar 2025" in made.tokenizer.decode(sequence.ids)
    (verification,) = made.verification_sequences(["x"], ["y"])
    assert "Today Date: 1 Mar 2025" in made.tokenizer.decode(verification.ids)
    assert made.notes == []
    default = ChatEncoder(ready("llama"))
    assert default.response_sequences(["x"], ["y"]) == encoder("llama").response_sequences(["x"], ["y"])
    assert len(default.notes) == 1


def test_a_template_that_ignores_the_pinned_date_gets_it_as_its_clock():
    made = ChatEncoder(ready(template="{{ strftime_now('%Y') }}" + tiny.CHATML), "1 Mar 2025")
    assert made.tokenizer.decode(made.response_sequences(["x"], ["y"])[0].ids).startswith("2025<|im_start|>")


def test_a_clock_that_is_not_printed_is_accepted():
    assert encoder(template="{% set unused = strftime_now('%Y') %}" + tiny.CHATML)


# --- verification prompts ------------------------------------------------------------------------------------------


def test_a_verification_prompt_is_a_user_turn_and_the_start_of_the_answer(architecture):
    made = encoder(architecture)
    (sequence,) = made.verification_sequences([PROMPT], [RESPONSE])
    content = f"Question: {PROMPT}\nAnswer: {RESPONSE}\nVerification: Is the answer correct (Yes/No)?"
    expected = made.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, date_string=DATE
    )
    assert made.tokenizer.decode(sequence.ids) == expected
    assert sequence.response_start == len(sequence.ids)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (VERIFICATION_PROMPT, "Question: {response} {0}\nAnswer: {prompt} {{x}}\nVerification: Is the answer"),
        ("{response} to {prompt}", "{prompt} {{x}} to {response} {0}<|im_end|>"),
        ("{prompt}{prompt}{response}", "{response} {0}{response} {0}{prompt} {{x}}<|im_end|>"),
        ("{} {x} {prompt}{response} \\1", "{} {x} {response} {0}{prompt} {{x}} \\1<|im_end|>"),
    ],
)
def test_braces_in_texts_are_text(asked, expected):
    made = encoder()
    (sequence,) = made.verification_sequences(["{response} {0}"], ["{prompt} {{x}}"], asked)
    assert made.tokenizer.decode(sequence.ids).startswith(f"<|im_start|>user\n{expected}")


def test_yes_and_no_are_one_token_each():
    made = encoder()
    kind = make_reward_model(Generative(), made)
    assert made.tokenizer.convert_ids_to_tokens([kind.yes, kind.no]) == ["Yes", "No"]


@pytest.mark.parametrize("word", ["yes", "Yes No", "Correct", "", "été"])
def test_a_word_of_several_tokens_is_refused(word):
    with pytest.raises(RmkitError) as error:
        make_reward_model(Generative(yes_token=word), encoder())
    assert f"{word!r} is not one token" in error.value.cause
    assert "reward_model.yes_token" in error.value.remedy


def test_an_unknown_word_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[PAD]", "[EOS]", "Yes"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}[EOS]{% endfor %}"
    made = ChatEncoder(tokenizer)
    assert made.answer_token("Yes") == 3
    with pytest.raises(RmkitError, match="'No' is not one token"):
        make_reward_model(Generative(), made)


def metaspace(template):
    """A SentencePiece-like tokenizer: a word has different tokens after a space and after other text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "</s>", "▁", *"YesNo:]xyUA?.", "Ye", "Yes", "No", "▁Yes", "▁No", "\n"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    pairs = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("▁", "Yes"), ("▁", "No")]
    backend = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer)


@pytest.mark.parametrize("ending", ["A:", "A: ", "A:\n", "A:</s>", "A:</s> "])
def test_answers_are_the_tokens_that_follow_the_verification_prompt(ending):
    """Alone, "Yes" is "▁Yes": a word at the start of a text, which no model emits after "A:"."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}U:{{ m['content'] }}ENDING{% else %}{{ m['content'] }}</s>"
        "{% endif %}{% endfor %}".replace("ENDING", ending)
    )
    made = metaspace(template)
    tokens = made.tokenizer.convert_ids_to_tokens
    assert tokens(made.tokenizer("Yes", add_special_tokens=False)["input_ids"]) == ["▁Yes"]
    kind = make_reward_model(Generative(), made)
    assert tokens([kind.yes, kind.no]) == ["Yes", "No"]
    # The prompt and the answer's id are the text of prompt and answer.
    (asked,) = made.verification_sequences(["x"], ["y"])
    assert made.tokenizer.decode([*asked.ids, kind.yes]) == made.tokenizer.decode(asked.ids) + "Yes"


def test_an_answer_that_depends_on_the_pair_is_refused():
    """Only whitespace separates these words, and a response may or may not end with it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[PAD]", "[EOS]", "Yes", "No", "x", "Verdict:"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[EOS]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] != 'user' %}[EOS]{% endif %}{% endfor %}"
    )
    made = ChatEncoder(tokenizer)
    with pytest.raises(RmkitError) as error:
        make_reward_model(Generative(verification_prompt="{prompt} {response}"), made)
    assert "'Yes' is after a verification prompt depends on the pair" in error.value.cause
    assert "end the prompt in a fixed text" in error.value.remedy
    kind = make_reward_model(Generative(verification_prompt="{prompt} {response} Verdict: "), made)
    assert (kind.yes, kind.no) == (3, 4)


def test_equal_answers_are_refused():
    with pytest.raises(RmkitError, match="'Yes' and 'Yes' are the same token"):
        make_reward_model(Generative(no_token="Yes"), encoder())


def test_explicit_and_implicit_models_read_the_same_ids(architecture):
    made = encoder(architecture)
    explicit, implicit = (make_reward_model(settings, made) for settings in (Explicit(), Implicit()))
    assert explicit.encode([PROMPT], [RESPONSE]) == implicit.encode([PROMPT], [RESPONSE])


# --- tokenizers made ready -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "options", "pad", "said"),
    [
        ("qwen2", {}, "<|endoftext|>", None),
        ("gemma2", {}, "<pad>", None),
        ("llama", {}, "<|reserved_special_token_0|>", "it has none"),
        ("llama", {"pad_token": "<|eot|>"}, "<|reserved_special_token_0|>", "its own, <|eot|>, ends responses"),
        ("gemma2", {"pad_token": "<eos>"}, "<pad>", "its own, <eos>, ends responses"),
        ("gemma2", {"pad_token": "<end_of_turn>"}, "<pad>", "its own, <end_of_turn>, ends responses"),
        ("qwen2", {"pad_token": "<|im_end|>"}, "[PAD]", "its own, <|im_end|>, ends responses"),
        ("gpt_neox", {}, "[PAD]", "it has none"),
        ("gpt_neox", {"pad_token": "<|endoftext|>"}, "[PAD]", "its own, <|endoftext|>, ends responses"),
    ],
)
def test_the_pad_token_never_ends_a_response(architecture, options, pad, said):
    tokenizer = tiny.tokenizer(architecture, **options)
    size = len(tokenizer)
    note = ensure_pad_token(tokenizer)
    assert tokenizer.pad_token == pad
    assert (note is None) == (said is None)
    if note is not None:
        assert note == f"Pad token: {pad} ({said})."
    assert len(tokenizer) == size + (pad == "[PAD]")  # a reserved token of the vocabulary where there is one
    assert ensure_pad_token(tokenizer) is None


def test_an_encoder_refuses_a_pad_token_that_ends_responses():
    tokenizer = tiny.tokenizer("qwen2", pad_token="<|im_end|>")
    with pytest.raises(RmkitError, match="also ends responses"):
        ChatEncoder(tokenizer)


def test_changes_are_reported_and_saved(models, tmp_path):
    tokenizer, notes = load_tokenizer(models["gpt_neox"])
    assert len(notes) == 2
    assert "no chat template" in notes[0]
    assert notes[1].startswith("Pad token: [PAD]")
    assert tokenizer.convert_ids_to_tokens(tokenizer("[USER]a[ASSISTANT]b[EOS]")["input_ids"]) == [
        *("[USER]", "a", "[ASSISTANT]", "b", "[EOS]")
    ]
    tokenizer.save_pretrained(tmp_path)
    again, notes = load_tokenizer(tmp_path)
    assert notes == []
    assert again.get_vocab() == tokenizer.get_vocab()
    assert ChatEncoder(again).template_hash == ChatEncoder(tokenizer).template_hash
    assert load_tokenizer(models["qwen2"])[1] == []


def test_a_template_file_overrides_the_tokenizers_template(models, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(tiny.CHATML.replace("<|im_start|>", "<|im_start|>>"))
    tokenizer, _ = load_tokenizer(models["qwen2"], chat_template=file)
    made = ChatEncoder(tokenizer)
    assert made.tokenizer.decode(made.response_sequences(["x"], ["y"])[0].ids).startswith("<|im_start|>>user")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RmkitError, match="cannot be read"):
        load_tokenizer(models["qwen2"], chat_template=file)
    for path in (tmp_path / "missing.jinja", tmp_path):
        with pytest.raises(RmkitError, match="Chat template not found"):
            load_tokenizer(models["qwen2"], chat_template=path)


def test_the_templates_of_base_models(models, tmp_path, monkeypatch):
    """The paper's text (Appendix D), and the released code: the model's own EOS, also after the prompt."""
    monkeypatch.chdir(tmp_path)
    prompt = Conversation((Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    end = AutoTokenizer.from_pretrained(models["gpt_neox"]).eos_token
    for template, tokens, whole, response in (
        (None, [], "[USER]a[ASSISTANT]b[EOS][USER]c[ASSISTANT]d[EOS]", "d[EOS]"),
        (
            Path("released"),
            ["<|user|>", "<|assistant|>"],
            f"<|user|>a{end}<|assistant|>b{end}<|user|>c{end}<|assistant|>d{end}",
            f"d{end}",
        ),
    ):
        tokenizer, _ = load_tokenizer(models["gpt_neox"], chat_template=template, added_tokens=tokens)
        (sequence,) = ChatEncoder(tokenizer).response_sequences([prompt], ["d"])
        assert tokenizer.decode(sequence.ids) == whole
        assert tokenizer.decode(sequence.ids[sequence.response_start :]) == response
        assert len(sequence.ids) == (10 if template is None else 12)


@pytest.mark.parametrize(
    "files", [{}, {"tokenizer.json": "{"}, {"tokenizer.json": "{}", "tokenizer_config.json": "[]"}]
)
def test_a_folder_without_a_whole_tokenizer_is_named(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(RmkitError, match=f"No tokenizer could be loaded from {tmp_path}"):
        load_tokenizer(tmp_path)


# --- rows for new tokens -------------------------------------------------------------------------------------------


def grown(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": PAPER_SPECIAL_TOKENS})
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = [each.weight.detach().clone() for each in (model.get_input_embeddings(), model.get_output_embeddings())]
    return model, tokenizer, before


@pytest.mark.parametrize("seed", [0, 1])
def test_new_rows_are_the_mean_of_the_old_ones(models, architecture, seed):
    model, tokenizer, before = grown(models[architecture])
    old = len(before[0])
    torch.manual_seed(seed)  # transformers' own way would draw them
    assert add_rows(model, tokenizer) == len(tokenizer) - old == 3
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for weight, was in zip(after, before, strict=True):
        assert torch.equal(weight[:old], was)
        torch.testing.assert_close(weight[old:], was.mean(0).expand(3, -1))
    tied = models[architecture].joinpath("config.json").read_text().count('"tie_word_embeddings": true')
    assert (after[0] is after[1]) == bool(tied)
    assert model.config.vocab_size == len(tokenizer)
    assert add_rows(model, tokenizer) == 0


def test_some_models_tie_their_embeddings_and_some_do_not(models):
    tied = {
        name: AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings for name, folder in models.items()
    }
    assert tied["qwen2"]
    assert not tied["llama"]


def test_two_loads_get_the_same_rows(models, architecture):
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, tokenizer, _ = grown(models[architecture])
        add_rows(model, tokenizer)
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_model_with_spare_rows_is_unchanged(models):
    model, tokenizer, before = grown(models["qwen2"])
    model.resize_token_embeddings(len(tokenizer) + 8)
    assert add_rows(model, tokenizer) == 0
    assert len(model.get_input_embeddings().weight) == len(before[0]) + 3 + 8
