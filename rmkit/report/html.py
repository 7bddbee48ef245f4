"""One HTML page that holds everything: no script, nothing fetched, light and dark, escaped by jinja2.

page("Quickstart", [Section("Accuracy by epoch", [Drawing("accuracy_by_epoch", "...", figure)])])
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rmkit.report.style import TEXT_WIDTH, for_page, plain_svg, write_png
from rmkit.report.tables import Table


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption; `name` is the stem of its files."""

    name: str
    title: str
    figure: Figure
    caption: str = ""
    kind: str = "figure"

    def save(self, folder: Path) -> None:
        """<name>.svg and <name>.png in the folder."""
        (folder / f"{self.name}.svg").write_text(self._svg, encoding="utf-8")
        write_png(self.figure, folder / f"{self.name}.png")

    @property
    def width(self) -> float:
        """Its width in lines of text: figures of one size of letters look as if of one piece."""
        return float(self.figure.get_figwidth()) / TEXT_WIDTH

    @cached_property
    def _svg(self) -> str:
        return plain_svg(self.figure)

    @cached_property
    def svg(self) -> Markup:
        return Markup(for_page(self._svg))


@dataclass(frozen=True)
class Picture:
    """A picture that another command left: SVG or PNG, embedded as an image (never as markup)."""

    title: str
    path: Path
    caption: str = ""
    kind: str = "picture"

    @cached_property
    def source(self) -> str:
        media = {".svg": "image/svg+xml", ".png": "image/png"}[self.path.suffix]
        return f"data:{media};base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Texts:
    """Texts from data or models, folded: each entry has a heading and labelled texts."""

    title: str
    entries: Sequence[tuple[str, Mapping[str, str]]]
    note: str = ""
    kind: str = "texts"


@dataclass(frozen=True)
class Tokens:
    """The tokens of a response, each with a value that colours it: rows of (label, [(token, value, shade)])."""

    title: str
    rows: Sequence[tuple[str, Sequence[tuple[str, float, float]]]]
    note: str = ""
    kind: str = "tokens"


Item = Table | Drawing | Picture | Texts | Tokens


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and what stands below it; `part` is what the section is about, such as a training set."""

    title: str
    items: Sequence[Item] = field(default_factory=list)
    text: str = ""
    part: str = ""

    @property
    def anchor(self) -> str:
        return "".join(each if each.isalnum() else "-" for each in f"{self.part} {self.title}".strip().lower())


def page(title: str, sections: Sequence[Section], lead: str = "", facts: Mapping[str, Any] | None = None) -> str:
    """The page as a string.

    Args:
        title: heading and window title.
        sections: those without items or text are left out.
        lead: the first paragraph.
        facts: shown as a list of names and values below it.
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
    return template.render(title=title, lead=lead, facts=facts or {}, sections=shown, parts=parts)
