"""`rmkit evaluate`: a reward model on every set of a suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rmkit.commands.score import (
    Base,
    BatchSize,
    Beta,
    DateString,
    DType,
    Layout,
    Model,
    NoVerify,
    Pooling,
    Reference,
    SpecialTokens,
    Trust,
    Type,
    is_main_process,
    load_scorer,
    score_sets,
)
from rmkit.errors import exit_on_error


def evaluate(
    model: Model,
    suite: Annotated[str, typer.Option(help="A suite file, or the name of a shipped one, for example general_chat.")],
    root: Annotated[Path | None, typer.Option(help="Where the sets are, instead of the suite's own root.")] = None,
    output: Annotated[Path, typer.Option(help="Where rewards/<set>.parquet and results.json go.")] = Path("evaluation"),
    type: Type = None,
    pooling: Pooling = None,
    reference: Reference = None,
    beta: Beta = None,
    batch_size: BatchSize = 16,
    max_length: Annotated[int | None, typer.Option(min=1, help="Leave out pairs over so many tokens.")] = None,
    dtype: DType = None,
    layout: Layout = None,
    date_string: DateString = None,
    special_tokens: SpecialTokens = None,
    trust_remote_code: Trust = False,
    base: Base = None,
    no_verify: NoVerify = False,
) -> None:
    """Score every set of a suite; print accuracy, margin and ties by set, category and section."""
    with exit_on_error():
        from rmkit.data.sources.use import ignored_split
        from rmkit.evaluation.statistics import by_category
        from rmkit.evaluation.suites import best_of_accuracy, load_set, load_suite, section_scores
        from rmkit.evaluation.tables import print_means, print_scores
        from rmkit.files import check_place, write_json

        check_place(output / "results.json")
        chosen_suite = load_suite(suite, root)
        data = {each.name: load_set(each, chosen_suite.root) for each in chosen_suite.sets}  # all, before the model
        for line in (ignored_split(each, data[each.name]) for each in chosen_suite.sets):
            if line is not None and is_main_process():
                print(line)
        options = (type, pooling, reference, beta, dtype, layout, date_string, trust_remote_code)
        scorer = load_scorer(model, *options, special_tokens=special_tokens, base=base, verify=not no_verify)
        results: dict[str, dict[str, Any]] = {}
        found = score_sets(scorer, data, batch_size, max_length, f"{len(data)} sets")
        summaries = {name: one.summary() for name, one in found.items()}  # refuses rewards that are not finite
        for each in chosen_suite.sets:
            one = found[each.name]
            if is_main_process():
                one.rewards.write(output / "rewards" / f"{each.name}.parquet")
            best_of = {}
            if each.score == "best_of":
                ranking = one.rewards.ranking
                best_of = best_of_accuracy(one.rewards.index, ranking[:, 0], ranking[:, 1])
            results[each.name] = summaries[each.name] | {"category": each.category} | best_of
        if not is_main_process():
            return
        accuracies = {name: result.get("best_of_accuracy", result["accuracy"]) for name, result in results.items()}
        means = by_category(accuracies, chosen_suite.categories)
        sections = section_scores(chosen_suite, accuracies)
        content = {"model": model, "suite": suite, "sets": results, "categories": means, "sections": sections}
        write_json(output / "results.json", content)
        print_scores(results, model)
        print_means(means, sections)
