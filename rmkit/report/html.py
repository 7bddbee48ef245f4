"""One HTML page that holds everything: no script, nothing fetched, light and dark, escaped by jinja2.

page("Quickstart", [Section("Accuracy by epoch", [Drawing("accuracy_by_epoch", "...", figure)])])
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rmkit.report.style import to_svg
from rmkit.report.tables import Table


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption; `name` is the stem of its files."""

    name: str
    title: str
    figure: Figure
    caption: str = ""
    kind: str = "figure"

    @cached_property
    def svg(self) -> Markup:
        return Markup(to_svg(self.figure))


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
    """A heading, a paragraph and what stands below it."""

    title: str
    items: Sequence[Item] = field(default_factory=list)
    text: str = ""

    @property
    def anchor(self) -> str:
        return "".join(each if each.isalnum() else "-" for each in self.title.lower())


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
    return environment.get_template("report.html").render(title=title, lead=lead, facts=facts or {}, sections=shown)
