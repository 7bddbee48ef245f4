"""Tables of the report, with export to Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

MINUS, NONE = "−", "–"


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, and smaller lines below it (such as the paper's number)."""

    text: str
    below: str = ""
    bold: bool = False
    warning: bool = False
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table: `header` and `rows` for readers; `data`, tidy and unrounded, for the CSV file."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    data: pd.DataFrame
    note: str = ""
    macro: ClassVar[str] = "table"

    def to_csv(self) -> str:
        return str(self.data.to_csv(index=False, lineterminator="\n"))

    def to_markdown(self) -> str:
        """A GitHub table; lines below a cell's text, such as the paper's number, in parentheses."""
        lines = [[_markdown(name) for name in self.header]]
        lines.append(["---:" if self._numeric(column) else "---" for column in range(len(self.header))])
        for row in self.rows:
            lines.append([_markdown_cell(cell) for cell in row])
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{_markdown(self.title)}** {_markdown(self.note)}".rstrip() + f"\n\n{body}\n"

    def to_latex(self) -> str:
        """A `table` with booktabs rules; needs \\usepackage{booktabs}."""
        form = "".join("r" if self._numeric(column) else "l" for column in range(len(self.header)))
        lines = [" & ".join(_latex(name) for name in self.header)]
        lines += [" & ".join(_latex_cell(cell) for cell in row) for row in self.rows]
        head, *body = [f"    {line} \\\\" for line in lines]
        return "\n".join(
            [
                "\\begin{table}",
                "  \\centering",
                f"  \\caption{{{_latex(f'{self.title} {self.note}'.strip())}}}",
                f"  \\label{{tab:{self.name.replace('_', '-')}}}",
                f"  \\begin{{tabular}}{{{form}}}",
                "    \\toprule",
                head,
                "    \\midrule",
                *body,
                "    \\bottomrule",
                "  \\end{tabular}",
                "\\end{table}",
                "",
            ]
        )

    def forms(self) -> dict[str, str]:
        """File ending -> content."""
        return {"md": self.to_markdown(), "csv": self.to_csv(), "tex": self.to_latex()}

    def _numeric(self, column: int) -> bool:
        return bool(self.rows) and all(row[column].number for row in self.rows)


def plain_table(name: str, title: str, data: pd.DataFrame, note: str = "", digits: int = 3) -> Table:
    """A frame as a table: texts left-aligned, numbers right-aligned and rounded; `data` stays unrounded."""
    header = [str(column) for column in data.columns]
    rows = [[plain_cell(value, digits) for value in row] for row in data.itertuples(index=False)]
    return Table(name, title, header, rows, data, note)


def plain_cell(value: object, digits: int = 3) -> Cell:
    """A value as a cell; a dash for a missing number."""
    if isinstance(value, Cell):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value), number=False)
    return Cell(number(float(value), 0 if isinstance(value, int) else digits))


def number(value: float, digits: int = 3) -> str:
    """A number with a true minus sign (U+2212); a dash for NaN and infinity."""
    if not math.isfinite(value):
        return NONE
    return f"{value + 0.0:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign; no sign if it rounds to 0."""
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", MINUS)


def spread(mean: float, sd: float, digits: int = 3) -> str:
    """`mean ± sd`, or only the mean where there is no sd (one seed)."""
    return f"{number(mean, digits)} ± {number(sd, digits)}" if math.isfinite(sd) else number(mean, digits)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_markdown(cell.text)}**" if cell.bold else _markdown(cell.text)
    return f"{text} ({_markdown(_one_line(cell.below))})" if cell.below else text


def _one_line(below: str) -> str:
    return "; ".join(below.splitlines())


def _markdown(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
    return escaped.replace("<", "&lt;").replace("\n", " ")


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        MINUS: "$-$",
        NONE: "--",
        "β": r"$\beta$",
        "λ": r"$\lambda$",
        "σ": r"$\sigma$",
        "ρ": r"$\rho$",
        "≤": r"$\leq$",
        "×": r"$\times$",
    }
)


def _latex(text: str) -> str:
    return text.translate(_LATEX).replace("\n", " ")


def _latex_cell(cell: Cell) -> str:
    lines = [f"\\textbf{{{_latex(cell.text)}}}" if cell.bold else _latex(cell.text)]
    lines += [f"{{\\scriptsize {_latex(line)}}}" for line in cell.below.splitlines()]
    return lines[0] if len(lines) == 1 else "\\shortstack[r]{" + r"\\ ".join(lines) + "}"
