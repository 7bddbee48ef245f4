"""What can be wrong with a rewrite, found without reading it: each check says one thing, the first to speak counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from rmkit.data.rewriting.journal import Answer
from rmkit.data.rewriting.styles import Style

_REFUSAL = re.compile(
    r"(i['’]?m|i am) sorry,? but|sorry,? (but )?i (can['’]?t|cannot)|i (can['’]?t|cannot)|i( a|['’])m unable to"
    r"|as an ai( language)? model,? i (can['’]?t|cannot)"
    r"|(je suis )?désolée?,? (mais )?je ne (peux|suis)|je ne peux pas"
    r"|lo siento,? (pero )?no puedo|no puedo (ayudar|cumplir|traducir)",
    re.IGNORECASE,
)
_MAY_BE_REFUSAL = re.compile(
    r"sorry|apolog|cannot|can['’]?t|unable|as an ai|désolé|ne peux|siento|no puedo", re.IGNORECASE
)
_NO_PROSE = re.compile(r"```.*?(?:```|$)|`[^`\n]*`|https?://\S+|\$[^$\n]*\$", re.DOTALL)
_LETTERS_TO_JUDGE = 20
_SURE = 0.9


@dataclass(frozen=True)
class Bounds:
    """Length of a rewrite by length of its original, in characters; texts under `short` count as that long."""

    lowest: float = 0.2
    highest: float = 5.0
    short: int = 20

    def hold(self, original: str, rewrite: str) -> bool:
        ratio = max(len(rewrite), self.short) / max(len(original), self.short)
        return self.lowest <= ratio <= self.highest


def problem(original: str, answer: Answer, style: Style, bounds: Bounds | None = None) -> str | None:
    """What is wrong with an answer as a rewrite of `original`, or None.

    cut by length: the model reached its limit. refusal: the model declined, and the original itself reads like none.
    unchanged: the text of the original, unless that holds no words to speak of ("42"). language: surely (as far as a
    detector can be sure) another one than was asked for; texts of under 20 letters without code and formulas are not
    judged. length ratio: see `Bounds`.
    """
    rewrite = answer.text
    if answer.finish_reason == "length":
        return "cut by length"
    if answer.finish_reason in ("refusal", "content_filter"):
        return "refusal"
    if not rewrite.strip():
        return "empty"
    if _refuses(rewrite) and not _MAY_BE_REFUSAL.search(original):
        return "refusal"
    if _letters(original) >= _LETTERS_TO_JUDGE and rewrite.split() == original.split():
        return "unchanged"
    if not (bounds or Bounds()).hold(original, rewrite):
        return "length ratio"
    if _in_another_language(original, rewrite, style):
        return "language"
    return None


def language_is_checked(style: Style) -> bool:
    """Whether the detector knows the language that rewrites in this style should be in."""
    return style.keeps_language or style.language in _identifier().labels


def _refuses(text: str) -> bool:
    return _REFUSAL.match(text.lstrip(" *_#>\"'“«¡\n")) is not None


def _in_another_language(original: str, rewrite: str, style: Style) -> bool:
    wanted = _language(original) if style.keeps_language else style.language
    if wanted is None or wanted not in _identifier().labels:
        return False
    found = _language(rewrite)
    return found is not None and found != wanted


def _language(text: str) -> str | None:
    """The code of the language of a text if there is no doubt about it."""
    prose = _NO_PROSE.sub(" ", text)
    if _letters(prose) < _LETTERS_TO_JUDGE:
        return None
    code, probability = _identifier().classify(prose)
    return code if probability >= _SURE and code != "zxx" else None


def _letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
