"""Tables of sets and metrics for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmkit.config.recipe import Data
from rmkit.encoding.pairs import EncodedPairs, remarks
from rmkit.models.positions import made_for


def print_counts(encoded: Mapping[str, EncodedPairs], data: Data, config: Any) -> None:
    """Print how many pairs every set has, how many were left out and why, and warnings about their texts."""
    limit = f"at most {data.max_length} tokens" if data.max_length else "no length limit"
    table = Table("set", title=f"Preference pairs ({limit})")
    table.add_column("pairs", justify="right")
    table.add_column("longest", justify="right")
    table.add_column("left out")
    for name, pairs in encoded.items():
        left_out = ", ".join(f"{count} {reason}" for reason, count in pairs.dropped.items())
        table.add_row(name, str(len(pairs)), str(pairs.longest), f"[yellow]{escape(left_out)}[/]" if left_out else "-")
    Console().print(table)
    for line in set_remarks(encoded, data, config):
        print(f"warning: {line}")


def set_remarks(encoded: Mapping[str, EncodedPairs], data: Data, config: Any) -> list[str]:
    """Warnings about the texts of a run's sets; see `rmkit.encoding.pairs.remarks`."""
    options: dict[str, Any] = {"known": made_for(config), "special_tokens": data.special_tokens}
    return [
        line
        for name, pairs in encoded.items()
        for line in remarks(name, pairs.lengths, pairs.control_texts, pairs.templated, **options)
    ]


def print_metrics(record: Mapping[str, Any]) -> None:
    """Print the table at the end of a run.

    Args:
        record: the content of run.json.
    """
    type_name = record["reward_model"]["reward_model"]["type"]
    initial = record["history"][0]["sets"]
    final = record["history"][-1]["sets"]
    fit = {name: final[name] for name, data in record["data"].items() if data["training"] and name in final}
    rows = {
        name: {"initial": initial.get(name, {}).get("accuracy")} | record["data"][name] | metrics
        for name, metrics in (record["metrics"] | fit).items()
    }
    for name in fit:
        rows[name]["category"] = "training set"
    print_scores(rows, f"{type_name} reward model, {record['recipe']['output_dir']}", with_initial=True)
    if kept := record.get("kept"):
        ended = "The run stopped early" if record["training"]["stopped_early"] else "The run ended"
        steps = f"{ended} after {record['training']['steps']} steps"
        print(
            f"The final model is that of step {kept['step']}, the best {kept['metric']}: {kept['value']:.4f}. {steps}."
        )


def print_scores(rows: Mapping[str, Mapping[str, Any]], title: str, with_initial: bool = False) -> None:
    """Print one row per set, grouped by category: metrics and length baselines.

    Args:
        rows: set name -> metrics, length baselines and category.
        with_initial: whether to add the accuracy before training.
    """
    # To fit into 80 columns there are no rules between columns, and long names are folded.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=escape(title))
    table.caption = (
        "margin: normalized, never negative; longer, shorter: accuracy of preferring the longer or shorter response"
    )
    table.add_column("set", overflow="fold")
    names = ["pairs", "accuracy", "initial", "margin", "ties", "longer", "shorter"]
    for name in names if with_initial else [name for name in names if name != "initial"]:
        table.add_column(name, justify="right", no_wrap=True)
    categories = dict.fromkeys(row.get("category") for row in rows.values())
    for category in sorted(categories, key=lambda name: name is not None):  # sets without one first, below no heading
        if category is not None:
            table.add_section()
            table.add_row(f"[italic]{category}[/]")
        for name, row in rows.items():
            if row.get("category") == category:
                before = [_number(row["initial"])] if with_initial else []
                after = (row[metric] for metric in ("normalized_margin", "tie_rate", "longer_wins", "shorter_wins"))
                accuracy = f"[bold]{_number(row['accuracy'])}[/]"
                table.add_row(escape(name), str(int(row["pairs"])), accuracy, *before, *map(_number, after))
    Console().print(table)


def print_means(categories: Mapping[str, float], sections: Mapping[str, float]) -> None:
    """Print the mean accuracies of a suite's categories and sections, if it has any."""
    for heading, means in (("category", categories), ("section", sections)):
        if means:
            table = Table(heading, "mean accuracy")
            for name, value in means.items():
                table.add_row(escape(name), _number(value))
            Console().print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
