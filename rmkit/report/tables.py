"""A table of the report, and the same as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rmkit.run_directory import write_text

MINUS, NONE = "−", "–"


@dataclass(frozen=True)
class Cell:
    """What is read in a table: a text, and below it a smaller one (the paper's number)."""

    text: str
    below: str = ""
    bold: bool = False
    warning: bool = False
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table: `header` and `rows` are read, `data` (tidy, unrounded) is what the CSV file holds."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    data: pd.DataFrame
    note: str = ""
    kind: str = "table"

    def to_csv(self) -> str:
        return str(self.data.to_csv(index=False, lineterminator="\n"))

    def to_markdown(self) -> str:
        """A GitHub table; bold as in the paper, the paper's number in brackets."""
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

    def save(self, folder: Path) -> None:
        """<name>.md, <name>.csv and <name>.tex in the folder."""
        write_text(folder / f"{self.name}.md", self.to_markdown())
        write_text(folder / f"{self.name}.csv", self.to_csv())
        write_text(folder / f"{self.name}.tex", self.to_latex())

    def _numeric(self, column: int) -> bool:
        return bool(self.rows) and all(row[column].number for row in self.rows)


def plain_table(name: str, title: str, data: pd.DataFrame, note: str = "", digits: int = 3) -> Table:
    """A frame as it is: texts to the left, numbers to the right, rounded for reading only."""
    header = [str(column) for column in data.columns]
    rows = [[plain_cell(value, digits) for value in row] for row in data.itertuples(index=False)]
    return Table(name, title, header, rows, data, note)


def plain_cell(value: object, digits: int = 3) -> Cell:
    """A value as a cell; a missing number as a dash."""
    if isinstance(value, Cell):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value), number=False)
    return Cell(number(float(value), 0 if isinstance(value, int) else digits))


def number(value: float, digits: int = 3) -> str:
    """A number with a true minus sign; a dash if there is none."""
    if not math.isfinite(value):
        return NONE
    return f"{value:.{digits}f}".replace("-", MINUS)


def spread(mean: float, sd: float, digits: int = 3) -> str:
    """mean ± sd, or the mean alone where one seed gives no sd."""
    return f"{number(mean, digits)} ± {number(sd, digits)}" if math.isfinite(sd) else number(mean, digits)


def save_all(tables: Iterable[Table], folder: Path) -> None:
    """Every table in the folder, in three forms each."""
    for table in tables:
        table.save(folder)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_markdown(cell.text)}**" if cell.bold else _markdown(cell.text)
    return f"{text} ({_markdown(cell.below)})" if cell.below else text


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
    text = f"\\textbf{{{_latex(cell.text)}}}" if cell.bold else _latex(cell.text)
    return f"\\shortstack{{{text}\\\\ {{\\scriptsize {_latex(cell.below)}}}}}" if cell.below else text
