"""Automatic checks of rewrites; the first check that fails names the problem."""

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
_MIN_LETTERS = 20
_CONFIDENT = 0.9


@dataclass(frozen=True)
class Bounds:
    """Limits on the length ratio of rewrite to original, in characters; shorter texts count as `short` characters."""

    lowest: float = 0.2
    highest: float = 5.0
    short: int = 20

    def hold(self, original: str, rewrite: str) -> bool:
        ratio = max(len(rewrite), self.short) / max(len(original), self.short)
        return self.lowest <= ratio <= self.highest


def problem(original: str, answer: Answer, style: Style, bounds: Bounds | None = None) -> str | None:
    """The problem of an answer as a rewrite of `original`, or None.

    - cut by length: the model reached its token limit.
    - refusal: the model declined, and the original does not read like a refusal itself.
    - empty.
    - unchanged: the text of the original, unless that has hardly any words ("42").
    - length ratio: see `Bounds`.
    - language: the detector is confident that it is not the requested one. Texts with fewer than 20 letters, without
      code and formulas, are not checked.
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
    if _letters(original) >= _MIN_LETTERS and rewrite.split() == original.split():
        return "unchanged"
    if not (bounds or Bounds()).hold(original, rewrite):
        return "length ratio"
    if _in_another_language(original, rewrite, style):
        return "language"
    return None


def language_is_checked(style: Style) -> bool:
    """Whether the detector knows the language of rewrites in this style."""
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
    """The language code of a text, if the detector is confident."""
    prose = _NO_PROSE.sub(" ", text)
    if _letters(prose) < _MIN_LETTERS:
        return None
    code, probability = _identifier().classify(prose)
    return code if probability >= _CONFIDENT and code != "zxx" else None


def _letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
