"""Results on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmkit.pairs import EncodedPairs


def print_counts(encoded: Mapping[str, EncodedPairs], limit: str) -> None:
    """How many pairs of each set are used, and what was left out and why."""
    table = Table(title=f"Preference pairs ({limit})")
    table.add_column("set")
    table.add_column("pairs", justify="right")
    table.add_column("left out")
    for name, pairs in encoded.items():
        left_out = ", ".join(f"{count} {reason}" for reason, count in pairs.dropped.items())
        table.add_row(name, str(len(pairs)), f"[yellow]warning: {escape(left_out)}[/]" if left_out else "none")
    Console().print(table)


def print_metrics(record: Mapping[str, Any]) -> None:
    """The table at the end of a run: a row a set, from run.json's content."""
    settings = record["reward_model"]["reward_model"]
    table = _metrics_table(f"{settings['type']} reward model, {record['recipe']['output_dir']}")
    initial = record["history"][0]["sets"]
    rows = dict(record["metrics"])
    if record["train_fit"] is not None:
        name = next(name for name, each in record["data"].items() if each["training"])
        rows[name] = record["train_fit"]
    for name, metrics in rows.items():
        data = record["data"][name]
        category = "training" if data["training"] else data["category"] or ""
        _add_row(table, name, category, metrics, data, initial.get(name))
    Console().print(table)


def print_scores(rows: Mapping[str, tuple[str | None, Mapping[str, float], Mapping[str, float]]], title: str) -> None:
    """The table of `rmkit score` and `rmkit evaluate`: set -> (category, metrics, length baselines)."""
    table = _metrics_table(title)
    for name, (category, metrics, baselines) in rows.items():
        _add_row(table, name, category or "", metrics, baselines, None)
    Console().print(table)


def _metrics_table(title: str) -> Table:
    table = Table(title=escape(title))
    table.add_column("set", overflow="fold")
    table.add_column("category")
    for name in ("pairs", "accuracy", "(initial)", "margin", "ties", "longer wins", "shorter wins"):
        table.add_column(name, justify="right")
    return table


def _add_row(
    table: Table,
    name: str,
    category: str,
    metrics: Mapping[str, float],
    baselines: Mapping[str, float],
    initial: Mapping[str, float] | None,
) -> None:
    table.add_row(
        escape(name),
        category,
        str(int(metrics["pairs"])),
        f"[bold]{metrics['accuracy']:.3f}[/]",
        f"{initial['accuracy']:.3f}" if initial else "",
        f"{metrics['normalized_margin']:.3f}",
        f"{metrics['tie_rate']:.3f}",
        f"{baselines['longer_wins']:.3f}",
        f"{baselines['shorter_wins']:.3f}",
    )
