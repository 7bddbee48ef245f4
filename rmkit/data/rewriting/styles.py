"""Rewriting styles: the prompts of Appendix D.3, other languages, or a custom prompt."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from babel import Locale

from rmkit.data.rewriting.local import REWRITERS
from rmkit.errors import RmkitError

RESPONSE = "{response}"

PARAPHRASE = (
    "I will provide a text. Please rewrite it so that the meaning remains the same, but the wording overlaps with the "
    "original text as little as possible. Aim to minimize word and phrase overlap while preserving all key information "
    "and nuance. Output only the rewritten text and nothing else.\n"
    "Here is the original text:\n{response}\nRewritten version:\n"
)
"""Appendix D.3, UltraFeedback: Paraphrased."""

TRANSLATE = (
    "I will provide a text in English. Please translate it to {language} while ensuring that the meaning remains the "
    "same. Output only the translated text and nothing else.\n"
    "Here is the original text:\n{response}\nTranslated version:\n"
)
"""Appendix D.3, UltraFeedback: French and Spanish; other languages by their name."""

LOCAL_PREFIX = "local:"


@dataclass(frozen=True)
class Style:
    """A way of rewriting with a language model.

    Attributes:
        name: of the style, the language or the prompt file.
        prompt: has {response} in place of the text.
        language: the code of the language of rewrites.
        keeps_language: whether rewrites have the language of the original.
    """

    name: str
    prompt: str
    language: str | None = None
    keeps_language: bool = False

    def request(self, response: str) -> str:
        """The prompt for a response."""
        return self.prompt.replace(RESPONSE, response)


def load_style(name: str) -> Style:
    """The style of a name: `paraphrase`, a language in English, or the path of a prompt file with {response}.

    Raises:
        RmkitError: if it is none of these, or the file cannot be used.
    """
    if name.lower() == "paraphrase":
        return Style("paraphrase", PARAPHRASE, keeps_language=True)
    path = Path(name)
    if path.is_file():
        return Style(path.name, _prompt_of(path))
    code = _languages().get(name.lower())
    if code is None:
        raise RmkitError(f"--style {name} is not a style, a language or a file.", _nearest(name))
    # English capitalises languages; str.title would also capitalise after an apostrophe.
    language = " ".join(word[:1].upper() + word[1:] for word in name.lower().split(" "))
    return Style(name.lower(), TRANSLATE.replace("{language}", language), language=code)


def load_local_style(name: str) -> str | None:
    """The local rewriter of `local:NAME`; None for styles that need a language model.

    Raises:
        RmkitError: if there is no such rewriter.
    """
    if not name.startswith(LOCAL_PREFIX):
        return None
    local = name.removeprefix(LOCAL_PREFIX)
    if local not in REWRITERS:
        raise RmkitError(
            f"--style {name} is unknown.", f"Use one of {', '.join(LOCAL_PREFIX + known for known in REWRITERS)}."
        )
    return local


def _prompt_of(path: Path) -> str:
    try:
        prompt = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RmkitError(f"The prompt file {path} cannot be read: {error}.", "Give a UTF-8 text file.") from None
    if RESPONSE not in prompt:
        raise RmkitError(
            f"The prompt file {path} does not contain {RESPONSE}.", f"Write {RESPONSE} in place of the text."
        )
    return prompt


@cache
def _languages() -> dict[str, str]:
    """English language name in lower case -> language code without region or script ("pt_BR" is "pt")."""
    return {name.lower(): code.split("_")[0] for code, name in Locale("en").languages.items()}


def _nearest(name: str) -> str:
    known = ["paraphrase", *(LOCAL_PREFIX + local for local in REWRITERS), *_languages()]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Give paraphrase, a language in English, {', '.join(known[1:6])}, or a file that contains {RESPONSE}."
