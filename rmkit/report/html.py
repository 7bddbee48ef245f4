"""Self-contained HTML pages: no script, no external files, light and dark mode, all text escaped by jinja2.

page("Quickstart", [Section("Accuracy by epoch", [Drawing("accuracy_by_epoch", "...", figure)])])
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rmkit.report.palette import css_variables
from rmkit.report.style import TEXT_WIDTH, for_page, plain_svg, write_png
from rmkit.report.tables import Table


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption; `name` is the stem of its files; `macro`, as of all items, the one that renders it."""

    name: str
    title: str
    figure: Figure
    caption: str = ""
    macro: ClassVar[str] = "figure"

    def save(self, folder: Path) -> None:
        """Write <name>.svg and <name>.png to the folder."""
        (folder / f"{self.name}.svg").write_text(self._svg, encoding="utf-8")
        write_png(self.figure, folder / f"{self.name}.png")

    @property
    def width(self) -> float:
        """Its width in lines of text, so that letters have the same size in all figures of a page."""
        return float(self.figure.get_figwidth()) / TEXT_WIDTH

    @cached_property
    def _svg(self) -> str:
        return plain_svg(self.figure)

    @cached_property
    def svg(self) -> Markup:
        return Markup(for_page(self._svg))


@dataclass(frozen=True)
class Picture:
    """An SVG or PNG file of another command, embedded as an image (never as markup)."""

    title: str
    path: Path
    caption: str = ""
    macro: ClassVar[str] = "picture"

    @cached_property
    def source(self) -> str:
        media = {".svg": "image/svg+xml", ".png": "image/png"}[self.path.suffix.lower()]
        return f"data:{media};base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Texts:
    """Collapsible texts from data or models: entries of (heading, label -> text)."""

    title: str
    entries: Sequence[tuple[str, Mapping[str, str]]]
    note: str = ""
    macro: ClassVar[str] = "texts"


@dataclass(frozen=True)
class Tokens:
    """Tokens coloured by a value: rows of (label, [(token, value, shade)]), the shade in [-1, 1]."""

    title: str
    rows: Sequence[tuple[str, Sequence[tuple[str, float, float]]]]
    note: str = ""
    macro: ClassVar[str] = "tokens"


Item = Table | Drawing | Picture | Texts | Tokens


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and items; sections of one `part`, such as a training set, share a line of links."""

    title: str
    items: Sequence[Item] = field(default_factory=list)
    text: str = ""
    part: str = ""

    @property
    def anchor(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in f"{self.part} {self.title}".strip().lower())


def page(title: str, sections: Sequence[Section], lead: str = "", facts: Mapping[str, Any] | None = None) -> str:
    """Render a page to a string.

    Args:
        title: heading and window title.
        sections: empty ones (no items, no text) are omitted.
        lead: the first paragraph.
        facts: name -> value, listed below the first paragraph.
    """
    environment = Environment(
        loader=PackageLoader("rmkit.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [section for section in sections if section.items or section.text]
    parts = [(part, list(members)) for part, members in groupby(shown, key=lambda section: section.part)]
    template = environment.get_template("report.html")
    return template.render(
        title=title,
        lead=lead,
        facts=facts or {},
        sections=shown,
        parts=parts,
        light=css_variables(dark=False),
        dark=css_variables(dark=True),
    )
