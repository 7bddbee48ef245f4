"""`rmkit evaluate`: a reward model on every set of a suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmkit.commands.options import BatchSize, Layout, MaxLength, Model, ModelOptions, group_options
from rmkit.commands.score import is_main_process, load_scorer, score_sets
from rmkit.errors import exit_on_error

if TYPE_CHECKING:
    from rmkit.evaluation.scorer import ScoredSet
    from rmkit.evaluation.suites import Suite


@group_options
def evaluate(
    model: Model,
    suite: Annotated[str, typer.Option(help="A suite file, or the name of a shipped suite, for example general_chat.")],
    options: ModelOptions,
    root: Annotated[Path | None, typer.Option(help="The folder of the sets; overrides the suite's root.")] = None,
    output: Annotated[Path, typer.Option(help="The folder for rewards/SET.parquet and results.json.")] = Path(
        "evaluation"
    ),
    layout: Layout = None,
    batch_size: BatchSize = 16,
    max_length: MaxLength = None,
) -> None:
    """Score the sets of a suite. Prints accuracy, margin and ties by set, category and section."""
    with exit_on_error():
        from rmkit.data.sources.use import reading_notes
        from rmkit.evaluation.suites import load_set, load_suite
        from rmkit.files import check_place

        check_place(output / "results.json")
        loaded_suite = load_suite(suite, root)
        data = {entry.name: load_set(entry, loaded_suite.root) for entry in loaded_suite.sets}  # all before the model
        for line in [line for entry in loaded_suite.sets for line in reading_notes(entry, data[entry.name])]:
            if is_main_process():
                print(line)
        scorer = load_scorer(model, options, layout)
        scored_sets = score_sets(scorer, data, batch_size, max_length, f"{len(data)} sets")
        summaries = {name: scored.summary() for name, scored in scored_sets.items()}  # rejects non-finite rewards
        if is_main_process():
            _write_results(model, suite, loaded_suite, scored_sets, summaries, output)


def _write_results(
    model: str,
    suite_name: str,
    suite: Suite,
    scored_sets: dict[str, ScoredSet],
    summaries: dict[str, dict[str, float]],
    output: Path,
) -> None:
    """Write the rewards and results.json, and print the tables."""
    from rmkit.evaluation.statistics import by_category
    from rmkit.evaluation.suites import best_of_accuracy, section_scores
    from rmkit.evaluation.tables import print_means, print_scores
    from rmkit.files import write_json

    results: dict[str, dict[str, Any]] = {}
    for entry in suite.sets:
        scored = scored_sets[entry.name]
        scored.rewards.write(output / "rewards" / f"{entry.name}.parquet")
        results[entry.name] = summaries[entry.name] | {"category": entry.category}
        if entry.score == "best_of":
            ranking = scored.rewards.ranking
            results[entry.name] |= best_of_accuracy(scored.rewards.index, ranking[:, 0], ranking[:, 1])
    accuracies = {name: result.get("best_of_accuracy", result["accuracy"]) for name, result in results.items()}
    means = by_category(accuracies, suite.categories)
    sections = section_scores(suite, accuracies)
    content = {"model": model, "suite": suite_name, "sets": results, "categories": means, "sections": sections}
    write_json(output / "results.json", content)
    print_scores(results, model)
    print_means(means, sections)
