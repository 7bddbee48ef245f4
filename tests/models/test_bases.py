"""Small base models: tokenizers, reproducible weights, and a cache that is never wrong."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmkit.config.recipe import VERIFICATION_PROMPT, BaseBuild
from rmkit.data import corpus
from rmkit.data.conversations import Message
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.errors import RmkitError
from rmkit.models import tiny_base as bases

TINY = BaseBuild(
    corpus="quickstart", tokenizer="words", hidden_size=16, layers=1, heads=2, steps=4, batch_size=4, max_length=48
)


def quickstart():
    return corpus.quickstart_documents(seed=0)


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; models are built in this process, which saves a Python start for every build."""
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bases, "TOKENIZER_DOCUMENTS", 50)
    monkeypatch.setattr(bases, "build_in_subprocess", bases.build_base)
    return tmp_path / "cache"


@pytest.fixture
def subprocess(cache, monkeypatch):
    """Models are built in a subprocess, as users build them."""
    monkeypatch.setattr(bases, "build_in_subprocess", build_in_subprocess)


build_in_subprocess = bases.build_in_subprocess


@pytest.fixture(scope="module")
def words():
    return bases.train_tokenizer(TINY, itertools.islice(quickstart(), 4096))


@pytest.fixture(scope="module")
def bpe():
    build = BaseBuild(tokenizer="bpe", vocabulary_size=400)
    return bases.train_tokenizer(build, itertools.islice(quickstart(), 500))


# --- tokenizers ----------------------------------------------------------------------------------------------------


def test_words_tokenizer_knows_every_word_and_loses_nothing(words):
    pairs = [pair for rows in corpus.persona_pairs(seed=0).values() for pair in rows]
    texts = {text for pair in pairs for text in pair.values()}
    texts |= {VERIFICATION_PROMPT.format(prompt=pair["prompt"], response=pair["chosen"]) for pair in pairs}
    texts |= {
        message["content"] for document in itertools.islice(corpus.quickstart_documents(1), 500) for message in document
    }
    for text in texts:
        ids = words(text)["input_ids"]
        assert words.unk_token_id not in ids
        assert words.decode(ids) == text
    assert all(len(words(word)["input_ids"]) == 1 for word in corpus.vocabulary_words())


def test_words_tokenizer_replaces_rare_words():
    tokenizer = bases.train_tokenizer(
        TINY.model_copy(update={"vocabulary_size": 40}), itertools.islice(quickstart(), 200)
    )
    assert len(tokenizer) <= 40
    assert tokenizer("unheard")["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer.unk_token_id not in tokenizer("Yes No")["input_ids"]


@pytest.mark.parametrize("text", ["a  b\n\n c\t", " Yes, Yesterday No.", "naïve — ∑ 漢字 🙂", "don't  stop ."])
def test_bpe_tokenizer_is_lossless(bpe, text):
    assert bpe.decode(bpe(text)["input_ids"]) == text
    assert len(bpe) <= 400


def test_bpe_needs_room_for_the_bytes():
    with pytest.raises(RmkitError, match="vocabulary_size 100"):
        bases.train_tokenizer(BaseBuild(vocabulary_size=100), [])


@pytest.mark.parametrize("name", ["words", "bpe"])
def test_yes_and_no_are_one_token_each_and_the_template_is_the_papers(name, request):
    tokenizer = request.getfixturevalue(name)
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
    user, assistant, end = tokenizer.convert_tokens_to_ids(["[USER]", "[ASSISTANT]", "[EOS]"])
    assert len({yes, no, user, assistant, end, tokenizer.pad_token_id}) == 6
    assert tokenizer("[ASSISTANT]Yes[EOS]")["input_ids"] == [assistant, yes, end]
    assert tokenizer("[ASSISTANT]No[EOS]")["input_ids"] == [assistant, no, end]
    messages = [{"role": "user", "content": "No"}, {"role": "assistant", "content": "Yes"}]
    assert tokenizer.apply_chat_template(messages)["input_ids"] == [user, no, assistant, yes, end]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert prompt == [user, no, assistant]
    assert tokenizer.eos_token_id == end


# --- models --------------------------------------------------------------------------------------------------------


def test_the_same_build_gives_the_same_weights(tmp_path, monkeypatch):
    digests = {}
    for name, build in (("first", TINY), ("again", TINY), ("other", TINY.model_copy(update={"seed": 1}))):
        monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / name))
        torch.rand(3)  # the state of the generators does not matter
        digests[name] = digest(bases.ensure_base(build, quickstart, "a"))
    assert digests["first"] == digests["again"] != digests["other"]


def test_a_built_base_loads_and_describes_itself(cache):
    folder = bases.ensure_base(TINY, quickstart, "a")
    assert folder.parent == cache / "bases"
    assert folder.name.startswith("quickstart-")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 1, 2)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        None,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    assert config.vocab_size == len(tokenizer)
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    metadata = json.loads((folder / "build.json").read_text())
    assert BaseBuild(**metadata["build"]) == TINY
    assert metadata["fingerprint"] == "a"
    assert 0 < metadata["final_loss"] < 10
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_training_lowers_the_loss():
    def loss(steps):
        build = TINY.model_copy(update={"steps": steps, "learning_rate": 1e-2})
        return json.loads((bases.ensure_base(build, quickstart, "a") / "build.json").read_text())["final_loss"]

    assert loss(40) < 0.7 * loss(1)


def test_a_small_corpus_is_repeated():
    documents = list(itertools.islice(quickstart(), 6))
    folder = bases.ensure_base(TINY, lambda: documents, "six")
    assert json.loads((folder / "build.json").read_text())["documents"] == 6


# --- subprocess ----------------------------------------------------------------------------------------------------


def test_a_subprocess_builds_the_same_weights_outside_of_the_launch(cache, tmp_path, monkeypatch, capfd):
    """It shows its progress, and leaves the state of this process alone."""
    expected = digest(bases.ensure_base(TINY, quickstart, "a"))
    monkeypatch.setattr(bases, "build_in_subprocess", build_in_subprocess)
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    environment, python, cpu = dict(os.environ), random.getstate(), torch.get_rng_state()
    shared = [dict(state._shared_state) for state in (PartialState, AcceleratorState, GradientState)]
    capfd.readouterr()
    assert digest(bases.ensure_base(TINY, quickstart, "a")) == expected
    assert "4/4" in capfd.readouterr().err
    assert [dict(state._shared_state) for state in (PartialState, AcceleratorState, GradientState)] == shared
    assert (dict(os.environ), random.getstate()) == (environment, python)
    assert torch.equal(torch.get_rng_state(), cpu)
    assert not torch.distributed.is_initialized()


def test_errors_of_the_subprocess_keep_their_remedy(subprocess, cache):
    with pytest.raises(RmkitError) as error:
        bases.ensure_base(BaseBuild(vocabulary_size=100), quickstart, "a")
    assert "vocabulary_size 100" in error.value.cause
    assert error.value.remedy.startswith("Make it at least ")
    assert not [path for path in (cache / "bases").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", RmkitError, "ended by signal 9"),
        ("raise ValueError('a bug')", RuntimeError, "(?s)Traceback.*a bug"),
    ],
)
def test_a_subprocess_that_dies_is_reported(subprocess, cache, monkeypatch, code, error, message):
    monkeypatch.setattr(bases, "_COMMAND", [sys.executable, "-c", code])
    with pytest.raises(error, match=message):
        bases.ensure_base(TINY, quickstart, "a")
    assert not [path for path in (cache / "bases").iterdir() if path.is_dir()]
    monkeypatch.setattr(bases, "build_in_subprocess", bases.build_base)
    smaller = TINY.model_copy(update={"batch_size": 2, "hidden_size": 8})  # the remedy
    assert bases.ensure_base(smaller, quickstart, "a").is_dir()


def test_an_interrupt_ends_the_subprocess(subprocess, cache, monkeypatch):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    monkeypatch.setattr(bases, "_COMMAND", [sys.executable, "-c", code])
    output = []

    class Interrupted(io.StringIO):
        def write(self, text):
            output.append(text)
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stderr", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        bases.ensure_base(TINY, quickstart, "a")
    assert not psutil.pid_exists(int(output[0]))
    assert not [path for path in (cache / "bases").iterdir() if path.is_dir()]


# --- cache ---------------------------------------------------------------------------------------------------------


def test_a_cached_base_is_not_built_again():
    def never():
        raise AssertionError("the corpus was read")

    folder = bases.ensure_base(TINY, quickstart, "a")
    assert bases.ensure_base(TINY, never, "a") == folder
    for build, fingerprint in ((TINY.model_copy(update={"steps": 5}), "a"), (TINY, "b")):
        with pytest.raises(AssertionError, match="was read"):
            bases.ensure_base(build, never, fingerprint)


def test_an_incomplete_base_is_built_again():
    folder = bases.ensure_base(TINY, quickstart, "a")
    before = digest(folder)
    (folder / "build.json").unlink()  # written last
    (folder / "model.safetensors").write_bytes(b"half")
    assert bases.ensure_base(TINY, quickstart, "a") == folder
    assert digest(folder) == before


def test_concurrent_builds_build_once(monkeypatch):
    built = []
    build = bases._build
    monkeypatch.setattr(bases, "_build", lambda *arguments: (built.append(1), build(*arguments)))
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: bases.ensure_base(TINY, quickstart, "a"), range(2)))
    assert folders[0] == folders[1]
    assert len(built) == 1


def test_a_second_build_keeps_the_first(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "build.json").write_text(folder.name)
    bases._publish(second, first)
    assert (first / "build.json").read_text() == "first"


def test_texts_that_the_template_does_not_write_are_refused():
    turns = (Message("assistant", "a"), Message("tool", "b"), Message("assistant", "c"))
    call = Message("assistant", "", json.dumps({"tool_calls": [{"name": "f"}]}))
    for response in (turns, (call,)):
        data = PreferenceData("set", [PreferencePair("p", response, "d")])
        with pytest.raises(RmkitError, match="set has messages of tools or calls of them"):
            bases.training_documents(bases.BaseBuild(), data)
    build, fine = bases.BaseBuild(), PreferenceData("set", [PreferencePair("p", "c", "d")])
    assert len(bases.training_documents(build, fine)[0]()) == 2


def test_user_errors_are_reported(tmp_path, monkeypatch):
    with pytest.raises(RmkitError, match="has no documents"):
        bases.ensure_base(TINY, lambda: [], "none")
    with pytest.raises(RmkitError, match="hidden_size 18"):
        bases.ensure_base(TINY.model_copy(update={"hidden_size": 18}), quickstart, "a")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(RmkitError, match="RMKIT_CACHE"):
        bases.ensure_base(TINY, quickstart, "a")
