"""The colours of pages and figures. The page's CSS, matplotlib and the theory figures all read them here.

A colour has two values, for light and dark pages. Figures are drawn in the light values; on a page, `css_variables` and
`replacements` turn these into CSS variables, so that one drawing serves both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """A colour on light and on dark pages, as #rrggbb."""

    light: str
    dark: str


@dataclass(frozen=True)
class TypeStyle:
    """How a reward model type is drawn: its colour, lighter tints for its variants, and a marker of its own."""

    colour: Colour
    tints: tuple[str, ...]
    marker: str


PAPER = Colour("#ffffff", "#16161a")
INK = Colour("#1b1b1f", "#e9e9ee")
MUTED = Colour("#6a6a73", "#a3a3ae")
RULE = Colour("#d5d5dc", "#3a3a43")
PANEL = Colour("#f6f6f8", "#1f1f25")
TIE = Colour("#b4b4bd", "#b4b4bd")
LINK = Colour("#005a94", "#7cc4f5")
WARNING = Colour("#9a3b00", "#ffb27a")
SHADOW = Colour("#8f8f99", "#7a7a88")

BLUE, SKY = Colour("#0072b2", "#2f8fd0"), Colour("#56b4e9", "#56b4e9")
ORANGE, AMBER = Colour("#d55e00", "#e5701d"), Colour("#e69f00", "#f08c46")
GREEN = Colour("#00906a", "#17a67d")
GREY = Colour("#7f7f7f", "#7f7f7f")
RAISES, LOWERS = Colour(BLUE.light, SKY.light), Colour(ORANGE.light, AMBER.dark)
"""Tokens that raise and lower a reward."""

TYPES = (
    TypeStyle(BLUE, (SKY.light, "#8ecae6"), "o"),
    TypeStyle(ORANGE, (AMBER.light, "#f2c14e"), "s"),
    TypeStyle(GREEN, ("#66c2a5", "#a6dcc8"), "^"),
    TypeStyle(Colour("#a8488f", "#cc79a7"), ("#cc79a7", "#e3b5cf"), "D"),
    TypeStyle(Colour("#7d6b00", "#b39a1f"), ("#b8a642", "#d8cc8c"), "v"),
    TypeStyle(Colour("#5b5f97", "#8d91c7"), ("#8f93c4", "#bdc0e0"), "P"),
)
"""Okabe and Ito's palette, which colour-blind readers can tell apart: EX-RM, IM-RM, EX-GRM, then any other types."""

_VARIABLES = {
    "paper": PAPER,
    "ink": INK,
    "muted": MUTED,
    "rule": RULE,
    "panel": PANEL,
    "link": LINK,
    "warning": WARNING,
    "shadow": SHADOW,
    "raises": RAISES,
    "lowers": LOWERS,
} | {f"type-{number}": style.colour for number, style in enumerate(TYPES, start=1)}


def css_variables(*, dark: bool) -> str:
    """The declarations of the page's CSS variables: `--paper: #ffffff; --ink: ...`."""
    return " ".join(f"--{name}: {colour.dark if dark else colour.light};" for name, colour in _VARIABLES.items())


def replacements() -> dict[str, str]:
    """Colour in a drawing -> what replaces it on a page; ink becomes the colour of the text."""
    found = {RULE.light: "rule", MUTED.light: "muted"}
    found |= {style.colour.light: f"type-{number}" for number, style in enumerate(TYPES, start=1)}
    return {INK.light: "currentColor"} | {colour: f"var(--{name}, {colour})" for colour, name in found.items()}
