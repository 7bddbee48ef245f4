"""The model card of a publication: metadata for the Hub, and a page that says what the model is and how to use it.

card.md is the page; <type>.md fills in what is said of that type of reward model. Names and texts of models, data and
recipes are never taken for markup: they stand in code, or go through `text`.
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
from rmkit.hub.publication import Publication

_PIPELINES = {"explicit": "text-classification"}  # the Hub has no name for what the others do
_METRICS = {"accuracy": "Preference accuracy", "normalized_margin": "Normalized reward margin"}
_HUB_SET = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]", re.ASCII)


def card(made: Publication, content: Mapping[str, Any], repo_id: str) -> str:
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
    settings, date = made.recipe.reward_model.model_dump(), made.record["date_string"]
    page = environment.select_template([f"{settings['type']}.md", "card.md"]).render(
        repo_id=repo_id,
        name=repo_id.split("/")[-1],
        version=rmkit.__version__,
        record=made.record,
        settings=settings,
        base=made.base,
        reference=made.reference,
        recipe=made.recipe,
        content=content,
        scored=content["history"][-1],
        initial=content["history"][0]["sets"],
        rows=_rows(made, content),
        date=Markup("") if date is None else Markup(f", date_string={python(date)}"),
    )
    return str(ModelCard(f"---\n{_metadata(made, content, repo_id).to_yaml()}\n---\n\n{page}"))


def _rows(made: Publication, content: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Set, its relation to the training set and its metrics; the training set last."""
    rows = [(name, content["data"][name]["category"] or "", metrics) for name, metrics in content["metrics"].items()]
    fit = content["train_fit"]
    return [*rows, *([(made.recipe.data.train.name, "training set", fit)] if fit else [])]


def _metadata(made: Publication, content: Mapping[str, Any], repo_id: str) -> ModelCardData:
    kind, adapter = made.record["reward_model"]["type"], made.record["adapter"]
    base = made.base.hub_id
    results = [result for name in content["metrics"] for result in _results(made, content, name)]
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        base_model=base,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=_PIPELINES.get(kind),
        tags=["reward-model", f"{kind}-reward-model", "rmkit"],
        datasets=[name] if (name := _hub_set(made.recipe.data.train)) else None,
        metrics=["accuracy"],
        eval_results=results or None,
    )


def _results(made: Publication, content: Mapping[str, Any], name: str) -> list[EvalResult]:
    source = next(each for each in made.recipe.data.evaluation if each.name == name)
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
    """The hub id of a set whose path can be one."""
    return source.path if source.path and not source.source and _HUB_SET.fullmatch(source.path) else None


def text(value: Any) -> Markup:
    """Any text as itself in Markdown, in a table too: nothing in it is markup, HTML or a link, and it is one line."""
    plain = "".join(each if each.isprintable() else " " for each in str(value))
    return Markup("".join(f"\\{each}" if each in _ESCAPED else str(escape(each)) for each in plain))


_ESCAPED = set(string.punctuation) - set("&<>\"'") - set(",;=%?")  # entities, and what is never markup


def code(value: Any) -> Markup:
    """Any text in a code span, in a table too."""
    plain = "".join(each if each.isprintable() else " " for each in str(value)).replace("|", "\\|")
    ticks = "`" * (_longest_run(plain) + 1)
    space = " " if plain[:1] in ("`", " ", "") or plain[-1:] in ("`", " ") else ""
    return Markup(f"{ticks}{space}{plain}{space}{ticks}")


def fenced(value: Any, language: str = "") -> Markup:
    """Any text in a block of code, whatever fences it holds."""
    ticks = "`" * max(3, _longest_run(str(value)) + 1)
    return Markup(f"{ticks}{language}\n{str(value).strip(chr(10))}\n{ticks}")


def python(value: Any) -> Markup:
    """A value as Python writes it, to stand in a block of code."""
    return Markup(ascii(value))


def number(value: float | None) -> str:
    """Three digits, or nothing."""
    return "" if value is None else f"{value:.3f}"


def _longest_run(plain: str) -> int:
    return max(map(len, re.findall("`+", plain)), default=0)
