"""The model card of a publication: metadata for the Hub, and a page that explains the model and how to use it.

card.md is the page; <type>.md fills in what is specific to a type of reward model. Names and texts of models, data and
recipes are never rendered as markup: they go through `text`, or into code.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import rmkit
from rmkit.config.recipe import EvaluationSet
from rmkit.hub.publication import Publication

_PIPELINES = {"explicit": "text-classification"}  # the Hub has no tag for the others
_METRICS = {"accuracy": "Preference accuracy", "normalized_margin": "Normalized reward margin"}
_HUB_SET = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]", re.ASCII)


def model_card(publication: Publication, content: Mapping[str, Any], repo_id: str) -> str:
    """README.md of a publication; `content` is that of run.json."""
    environment = Environment(
        loader=PackageLoader("rmkit", "hub/cards"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": text, "code": code, "fenced": fenced, "python": python, "number": number}
    settings, date = publication.recipe.reward_model.model_dump(), publication.record["date_string"]
    page = environment.select_template([f"{settings['type']}.md", "card.md"]).render(
        repo_id=repo_id,
        name=repo_id.split("/")[-1],
        version=rmkit.__version__,
        record=publication.record,
        settings=settings,
        base=publication.base,
        reference=publication.reference,
        recipe=publication.recipe,
        content=content,
        scored=content["history"][-1],
        initial=content["history"][0]["sets"],
        rows=_rows(publication, content),
        date=Markup("") if date is None else Markup(f", date_string={python(date)}"),
    )
    return str(ModelCard(f"---\n{_metadata(publication, content, repo_id).to_yaml()}\n---\n\n{page}"))


def _rows(publication: Publication, content: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Name, category and metrics of every set; the training sets last."""
    rows = [(name, content["data"][name]["category"] or "", metrics) for name, metrics in content["metrics"].items()]
    final, training = content["history"][-1]["sets"], publication.recipe.data.training_sets
    return [*rows, *((each.name, "training set", final[each.name]) for each in training if each.name in final)]


def _metadata(publication: Publication, content: Mapping[str, Any], repo_id: str) -> ModelCardData:
    type_name, adapter = publication.record["reward_model"]["type"], publication.record["adapter"]
    base = publication.base.hub_id
    results = [
        result
        for source in publication.recipe.data.evaluation  # a set cut off the training set is nowhere else
        for result in _results(source, content)
    ]
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        base_model=base,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=_PIPELINES.get(type_name),
        tags=["reward-model", f"{type_name}-reward-model", "rmkit"],
        datasets=list(filter(None, map(_hub_set, publication.recipe.data.training_sets))) or None,
        metrics=["accuracy"],
        eval_results=results or None,
    )


def _results(source: EvaluationSet, content: Mapping[str, Any]) -> list[EvalResult]:
    name = source.name
    metrics, data = content["metrics"][name], content["data"][name]
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Preference ranking",
            dataset_name=name,
            dataset_type=_hub_set(source) or name,
            dataset_config=source.subset,
            dataset_split=source.split,
            dataset_revision=source.revision,
            dataset_args={"pairs": data["pairs"], "sha256": data["fingerprint"]},
            metric_type=metric,
            metric_name=title,
            metric_value=round(metrics[metric], 4),
        )
        for metric, title in _METRICS.items()
        if metrics.get(metric) is not None
    ]


def _hub_set(source: Any) -> str | None:
    """The path of a set, if it can be a hub id."""
    return source.path if source.path and not source.source and _HUB_SET.fullmatch(source.path) else None


def text(value: Any) -> Markup:
    """Any text on one line of Markdown, also in a table, with all markup, HTML and links escaped."""
    plain = "".join(character if character.isprintable() else " " for character in str(value))
    return Markup("".join(f"\\{item}" if item in _ESCAPED else str(escape(item)) for item in plain))


_ESCAPED = set(string.punctuation) - set("&<>\"'") - set(",;=%?")  # HTML entities, and what is never markup


def code(value: Any) -> Markup:
    """Any text in a code span, also in a table."""
    plain = "".join(character if character.isprintable() else " " for character in str(value)).replace("|", "\\|")
    ticks = "`" * (_longest_run(plain) + 1)
    space = " " if plain[:1] in ("`", " ", "") or plain[-1:] in ("`", " ") else ""
    return Markup(f"{ticks}{space}{plain}{space}{ticks}")


def fenced(value: Any, language: str = "") -> Markup:
    """Any text in a code block, even if it contains fences."""
    ticks = "`" * max(3, _longest_run(str(value)) + 1)
    return Markup(f"{ticks}{language}\n{str(value).strip(chr(10))}\n{ticks}")


def python(value: Any) -> Markup:
    """A value as a Python literal, for a code block."""
    return Markup(ascii(value))


def number(value: float | None) -> str:
    """Three decimals, or an empty string."""
    return "" if value is None else f"{value:.3f}"


def _longest_run(plain: str) -> int:
    return max(map(len, re.findall("`+", plain)), default=0)
