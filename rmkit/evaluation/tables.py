"""Results on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmkit.pairs import EncodedPairs


def print_counts(encoded: Mapping[str, EncodedPairs], max_length: int | None, config: Any) -> None:
    """How many pairs of each set are used, what was left out and why, and what is longer than the model knows."""
    limit = f"at most {max_length} tokens" if max_length else "no length limit"
    table = Table("set", title=f"Preference pairs ({limit})")
    table.add_column("pairs", justify="right")
    table.add_column("longest", justify="right")
    table.add_column("left out")
    known = getattr(config, "max_position_embeddings", None)
    for name, pairs in encoded.items():
        left_out = ", ".join(f"{count} {reason}" for reason, count in pairs.dropped.items())
        table.add_row(name, str(len(pairs)), str(pairs.longest), f"[yellow]{escape(left_out)}[/]" if left_out else "-")
    Console().print(table)
    for name, pairs in encoded.items():
        if known is not None and pairs.longest > known:
            print(
                f"warning: {name}: texts of up to {pairs.longest} tokens, the model was made for {known}: data.max_length"
            )


def print_metrics(record: Mapping[str, Any]) -> None:
    """The table at the end of a run: a row a set, from run.json's content."""
    settings = record["reward_model"]["reward_model"]
    table = _metrics_table(f"{settings['type']} reward model, {record['recipe']['output_dir']}", with_initial=True)
    initial = record["history"][0]["sets"]
    rows = dict(record["metrics"])
    if record["train_fit"] is not None:
        name = next(name for name, each in record["data"].items() if each["training"])
        rows[name] = record["train_fit"]
    for name, metrics in rows.items():
        data = record["data"][name]
        category = "training" if data["training"] else data["category"]
        before = f"{initial[name]['accuracy']:.3f}" if name in initial else ""
        table.add_row(*_row(name, category, metrics, data, before))
    Console().print(table)


def print_scores(rows: Mapping[str, tuple[str | None, Mapping[str, float], Mapping[str, float]]], title: str) -> None:
    """The table of `rmkit score` and `rmkit evaluate`: set -> (category, metrics, length baselines)."""
    table = _metrics_table(title, with_initial=False)
    for name, (category, metrics, baselines) in rows.items():
        table.add_row(*_row(name, category, metrics, baselines))
    Console().print(table)


def _metrics_table(title: str, with_initial: bool) -> Table:
    table = Table("set", "category", title=escape(title), caption="longer, shorter: accuracy of preferring by length")
    numbers = ["pairs", "accuracy", "initial", "margin", "ties", "longer", "shorter"]
    for name in numbers if with_initial else [each for each in numbers if each != "initial"]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _row(
    name: str,
    category: str | None,
    metrics: Mapping[str, float],
    baselines: Mapping[str, float],
    *between: str,
) -> list[str]:
    return [
        escape(name),
        category or "",
        str(int(metrics["pairs"])),
        f"[bold]{metrics['accuracy']:.3f}[/]",
        *between,
        f"{metrics['normalized_margin']:.3f}",
        f"{metrics['tie_rate']:.3f}",
        f"{baselines['longer_wins']:.3f}",
        f"{baselines['shorter_wins']:.3f}",
    ]
