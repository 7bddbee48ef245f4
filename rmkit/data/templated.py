"""Recognise texts to which a chat template was already applied, by their structure.

Such a text begins with the opener of a turn (`<|im_start|>user`, `[INST]`), possibly after a BOS token; or it holds two
openers and ends with an opener or the end of a turn. A text that only mentions a token, or quotes turns in a sentence,
is not one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from rmkit.errors import RmkitError

_BOS = r"(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<｜begin▁of▁sentence｜>|\[gMASK\]<sop>)?"


@dataclass(frozen=True)
class TurnMarks:
    """What chat templates write before and after turns, as regular expressions."""

    openers: str
    ends: str

    @cached_property
    def _start(self) -> re.Pattern[str]:
        return re.compile(rf"\s*{_BOS}\s*(?:{self.openers})")

    @cached_property
    def _turns(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{self.openers}).*?(?:{self.openers})", re.DOTALL)

    @cached_property
    def _last(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{self.openers}|{self.ends})\s*\Z")

    def spelled_in(self, text: str) -> bool:
        """Whether a text is made of turns."""
        return bool(self._start.match(text) or (self._turns.search(text) and self._last.search(text)))


def literal_marks(openers: Iterable[str], ends: Iterable[str]) -> TurnMarks | None:
    """The marks of one template, from the texts that it writes; None if it writes none."""
    first, second = ("|".join(map(re.escape, sorted({*texts}, key=len))) for texts in (openers, ends))
    return TurnMarks(first, second or r"(?!)") if first else None


KNOWN_MARKS = TurnMarks(
    r"<\|im_start\|>(?:system|user|assistant)\b|<start_of_turn>(?:user|model)\b|\[INST\]"
    r"|<\|start_header_id\|>(?:system|user|assistant)<\|end_header_id\|>"
    r"|<\|(?:system|user|assistant|prompter)\|>|<\|start\|>(?:system|developer|user|assistant)\b"
    r"|<｜(?:User|Assistant)｜>|<\|START_OF_TURN_TOKEN\|>",
    r"<\|im_end\|>|<end_of_turn>|\[/INST\]|<\|eot_id\|>|</s>|<\|end\|>|<\|endoftext\|>|<\|END_OF_TURN_TOKEN\|>"
    r"|<｜end▁of▁sentence｜>",
)
"""Those of templates in use."""

READ_AS_TEXT = (
    "spells turns of a chat template, which was already applied; they are read as text. Give plain texts or messages."
)
"""What is said of such a text where no set says what to do with it."""


def already_applied(where: str) -> RmkitError:
    """The refusal of a text that a template was applied to."""
    return RmkitError(
        f"{where} spells turns of a chat template, which was already applied.",
        "Give the conversation as messages, or set templated: read (turns) or text in the set (--templated).",
    )
