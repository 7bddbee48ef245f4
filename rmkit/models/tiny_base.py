"""Small language models trained from scratch (`base.build` of a recipe), so that rmkit runs without pretrained weights.

A tokenizer and a Llama model are trained on a corpus and cached under a hash of settings and corpus, so each model is
built once. Training runs in a subprocess (`python -m rmkit.models.tiny_base`), because the run that needs the base has
its own accelerate state, launcher variables and random number generators.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path
from typing import cast

import torch
from filelock import FileLock
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from rmkit.config.recipe import BaseBuild
from rmkit.data.conversations import messages, prompt_turns, response_turns
from rmkit.data.preferences import PreferenceData
from rmkit.encoding.tokenizer import PAD_TOKEN, PAPER_CHAT_TEMPLATE, PAPER_SPECIAL_TOKENS
from rmkit.errors import EXIT_CODE, RmkitError
from rmkit.files import rmkit_cache

Document = list[dict[str, str]]
Documents = Callable[[], Iterable[Document]]

FORMAT = 1
"""Part of every cache name: raise it when a change to this file changes the model of the same build."""

TOKENIZER_DOCUMENTS = 4096
"""A tokenizer is trained on at least this many documents (if the corpus has them), however short the training."""

UNKNOWN_TOKEN = "[UNK]"
USER, ASSISTANT, END = PAPER_SPECIAL_TOKENS


def ensure_base(build: BaseBuild, documents: Documents, fingerprint: str) -> Path:
    """Return the folder of the language model of `build`, after training it unless the cache has it.

    Processes that need the same model at the same time wait for the one that builds it. The folder appears complete, by
    a rename. Training runs on the CPU in a subprocess, outside of any distributed launch; its output goes to stderr.

    Args:
        build: the settings.
        documents: returns the corpus, which may be endless; called only if the model has to be built.
        fingerprint: identifies the corpus; a different fingerprint means a different model.

    Raises:
        RmkitError: if the cache is not writable, the corpus is empty or the settings are invalid.
    """
    folder = _folder(build, fingerprint)
    if _is_complete(folder):
        return folder
    if build.hidden_size % (2 * build.heads):
        raise RmkitError(
            f"base.build.hidden_size {build.hidden_size} is not a multiple of twice base.build.heads ({build.heads}).",
            f"For example hidden_size: {2 * build.heads * max(1, build.hidden_size // (2 * build.heads))}.",
        )
    _ensure_writable(folder.parent)
    with (
        FileLock(folder.parent / f".{folder.name}.lock"),
        tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as workspace,
    ):
        if not _is_complete(folder):  # another process may have built it while this one waited
            new = Path(workspace) / "model"
            _build(build, documents, fingerprint, new)
            _publish(new, folder)
    return folder


def cached_base(build: BaseBuild, fingerprint: str) -> Path | None:
    """The folder of the language model of `build`, if it is in the cache."""
    folder = _folder(build, fingerprint)
    return folder if _is_complete(folder) else None


def _folder(build: BaseBuild, fingerprint: str) -> Path:
    return rmkit_cache() / "bases" / f"{build.corpus}-{_digest(build, fingerprint)}"


def _ensure_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is read-only")
    except OSError as error:
        raise RmkitError(
            f"The cache of built base models cannot be written: {error}.", "Set RMKIT_CACHE to a folder of your own."
        ) from None


def _digest(build: BaseBuild, fingerprint: str) -> str:
    content = {"build": build.model_dump(mode="json"), "fingerprint": fingerprint, "format": FORMAT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _is_complete(folder: Path) -> bool:
    """Whether a model was written completely: build.json comes last."""
    return (folder / "build.json").is_file()


def _publish(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`, in place of an incomplete folder; a complete one is kept."""
    if folder.exists() and not _is_complete(folder):
        shutil.rmtree(folder)
    try:
        new.rename(folder)
    except OSError:  # on file systems without locks another process may have come first
        if not _is_complete(folder):
            raise


def _build(build: BaseBuild, documents: Documents, fingerprint: str, folder: Path) -> None:
    # The corpus may be endless: read no more documents than training uses.
    corpus = list(itertools.islice(documents(), max(build.steps * build.batch_size, TOKENIZER_DOCUMENTS)))
    if not corpus:
        raise RmkitError(f"The corpus of base.build ({build.corpus}) has no documents.", "Check the training set.")
    build_in_subprocess(build, corpus, fingerprint, folder)


def build_base(build: BaseBuild, corpus: list[Document], fingerprint: str, folder: Path) -> None:
    """Train tokenizer and model in this process, which should do nothing else, and save them."""
    started = time.monotonic()
    tokenizer = train_tokenizer(build, corpus)
    model, loss = _train_model(build, tokenizer, corpus[: build.steps * build.batch_size])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    metadata = {
        "build": build.model_dump(mode="json"),
        "fingerprint": fingerprint,
        "format": FORMAT,
        "documents": len(corpus),
        "vocabulary": len(tokenizer),
        "parameters": model.num_parameters(),
        "final_loss": round(loss, 4),
        "seconds": round(time.monotonic() - started, 1),
    }
    (folder / "build.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def training_documents(build: BaseBuild, training_set: PreferenceData) -> tuple[Documents, str]:
    """The documents of a build's corpus, and their fingerprint.

    For `training_texts` the documents are both responses of every training pair with their prompts: chosen and rejected
    are treated alike, so the base learns no preference.

    Raises:
        RmkitError: if they have messages of tools or tool calls.
    """
    if build.corpus == "quickstart":
        from rmkit.data.corpus import corpus_fingerprint, quickstart_documents

        return (lambda: quickstart_documents(build.seed)), corpus_fingerprint(build.seed)
    conversations = {
        (pair.prompt, response): None for pair in training_set for response in (pair.chosen, pair.rejected)
    }
    documents = [messages((*prompt_turns(prompt), *response_turns(response))) for prompt, response in conversations]
    if any(message["role"] == "tool" or "tool_calls" in message for document in documents for message in document):
        raise RmkitError(
            f"{training_set.name} has messages of tools or calls of them, which the template of base.build does not "
            "write.",
            "Give a model whose template writes them as base.name.",
        )
    return (lambda: documents), training_set.fingerprint


# --- subprocess ----------------------------------------------------------------------------------------------------

_LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PARALLELISM_CONFIG_", "PMI_", "OMPI_", "MV2_")
_LAUNCHER_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_COMMAND = [sys.executable, "-P", "-m", "rmkit.models.tiny_base"]


def build_in_subprocess(build: BaseBuild, corpus: list[Document], fingerprint: str, folder: Path) -> None:
    """Run `build_base` in a subprocess and copy its output to stderr.

    The subprocess ends with this process, however that ends: it exits when its standard input, a pipe, is closed.

    Raises:
        RmkitError: the one that `build_base` raises; or if a signal ended the subprocess.
    """
    request, refusal = folder.with_name("request.json"), folder.with_name("error.json")
    content = {
        "build": build.model_dump(mode="json"),
        "corpus": corpus,
        "fingerprint": fingerprint,
        "threads": torch.get_num_threads(),  # sums depend on it
    }
    request.write_text(json.dumps(content), encoding="utf-8")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER_VARIABLES and not name.startswith(_LAUNCHER_PREFIXES)
    }
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # the same modules
    command = [*_COMMAND, str(request), str(folder), str(refusal)]
    output = ""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=environment) as process:
        try:
            chunks = iter(cast(BufferedReader, process.stdout).read1, b"")
            for text in codecs.iterdecode(chunks, "utf-8", errors="replace"):
                output = (output + text)[-10_000:]
                sys.stderr.write(text)
                sys.stderr.flush()
        except BaseException:
            process.kill()
            raise
    if refusal.exists():
        raise RmkitError(**json.loads(refusal.read_text(encoding="utf-8")))
    if process.returncode < 0:
        raise RmkitError(
            f"Building the base model was ended by signal {-process.returncode}.",
            "If memory ran out, lower base.build.batch_size or base.build.hidden_size; then run it again.",
        )
    if process.returncode:
        raise RuntimeError(f"Building the base model failed:\n{output}")


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: returns when the parent's end is closed
    os._exit(1)


def main(request: Path, folder: Path, refusal: Path) -> None:
    """The subprocess of `build_in_subprocess`; an `RmkitError` is written to `refusal`."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    content = json.loads(request.read_text(encoding="utf-8"))
    torch.set_num_threads(content["threads"])
    try:
        build_base(BaseBuild(**content["build"]), content["corpus"], content["fingerprint"], folder)
    except RmkitError as error:
        refusal.write_text(json.dumps({"cause": error.cause, "remedy": error.remedy}), encoding="utf-8")
        sys.exit(EXIT_CODE)


# --- tokenizer -----------------------------------------------------------------------------------------------------


def train_tokenizer(build: BaseBuild, documents: Iterable[Document]) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the (finite) documents, with the chat template of Appendix D.

    `bpe` is a lossless byte-level BPE. `words` has a token per word, punctuation mark and line break; spaces and tabs
    only separate tokens, and everything outside the `vocabulary_size` most frequent tokens is [UNK]. In both, the words
    "Yes" and "No" are always single tokens, as EX-GRMs require (Appendix A).
    """
    contents = (message["content"] for document in documents for message in document)
    tokenizer = (_words if build.tokenizer == "words" else _bpe)(build.vocabulary_size, contents)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=END,
        unk_token=UNKNOWN_TOKEN if build.tokenizer == "words" else None,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=PAPER_CHAT_TEMPLATE,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _bpe(size: int, contents: Iterable[str]) -> Tokenizer:
    special = [PAD_TOKEN, *PAPER_SPECIAL_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    answers = [AddedToken(answer, single_word=True, normalized=False) for answer in ("Yes", "No")]
    if size < len(special) + len(alphabet) + len(answers):
        raise RmkitError(
            f"base.build.vocabulary_size {size} is too small for all bytes and special tokens.",
            f"Make it at least {len(special) + len(alphabet) + len(answers)}.",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(answers), special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(contents, trainer)
    tokenizer.add_tokens(answers)  # even if the corpus has too few of them for a merge
    return tokenizer


def _words(size: int, contents: Iterable[str]) -> Tokenizer:
    special = [PAD_TOKEN, UNKNOWN_TOKEN, *PAPER_SPECIAL_TOKENS]
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]|\n"), behavior="removed", invert=True)
    # Decoding restores spaces as in English: before words and opening brackets, unless they start a line or follow an
    # opening bracket, slash or special token.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"^(?=[\w(])"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=[(/\n\]]) |^ "), ""),
        ]
    )
    # EX-GRMs need "Yes" and "No", which training texts may not contain.
    trainer = trainers.WordLevelTrainer(vocab_size=size - 2, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(contents, trainer)
    tokenizer.add_tokens(["Yes", "No"])
    return tokenizer


# --- model ---------------------------------------------------------------------------------------------------------


def _train_model(
    build: BaseBuild, tokenizer: PreTrainedTokenizerFast, corpus: list[Document]
) -> tuple[LlamaForCausalLM, float]:
    """Train on next-token prediction, on prompts and responses alike; returns the model and its last logged loss.

    Documents are truncated to `max_length` tokens. A corpus smaller than steps x batch_size is repeated, in another
    order in every epoch.
    """
    texts = [tokenizer.apply_chat_template(document, tokenize=False) for document in corpus]
    encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=build.max_length)
    rows = [{"input_ids": input_ids} for input_ids in encoded["input_ids"]]
    torch.manual_seed(build.seed)
    model = LlamaForCausalLM(_config(build, tokenizer))
    with tempfile.TemporaryDirectory() as unused:
        arguments = TrainingArguments(
            output_dir=unused,
            max_steps=build.steps,
            per_device_train_batch_size=build.batch_size,
            learning_rate=build.learning_rate,
            lr_scheduler_type="cosine",
            optim="adamw_torch",
            weight_decay=0.0,
            seed=build.seed,
            use_cpu=True,  # the same weights on every machine; a model this small gains nothing from a GPU
            bf16=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            eval_strategy="no",
            logging_steps=max(1, build.steps // 5),
            disable_tqdm=False,
            report_to="none",
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
        trainer.train()
    model.config.use_cache = True  # the trainer turns it off
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model, losses[-1]


def _config(build: BaseBuild, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=build.hidden_size,
        intermediate_size=8 * build.hidden_size // 3,
        num_hidden_layers=build.layers,
        num_attention_heads=build.heads,
        num_key_value_heads=build.heads,
        max_position_embeddings=max(2048, build.max_length),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
