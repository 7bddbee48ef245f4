"""Names of types, models and data sets in tables and figures: the paper's names where they fit."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, get_args

from rmkit.config.recipe import RewardModelSettings

EX, IM, GRM = "EX-RM", "IM-RM", "EX-GRM"
_PAPER_LABELS = {"explicit": EX, "implicit": IM, "generative": GRM}

CATEGORIES = {
    "in-distribution": "In-Distribution",
    "token-level shift": "Token-Level Shift",
    "domain shift": "Domain Shift",
    "control": "Control",
    None: "Other",
}
DATASETS = ["UF", "UF: Paraphrased", "UF: French", "UF: Spanish", "RB: Math", "RewardMATH", "RB: Code"]
TRAINING_SETS = {"UF": "UltraFeedback", "RewardMATH": "RewardMATH"}

_PATTERNS = [
    (r"(?=.*(ultrafeedback|\buf\b))(?=.*(paraphras|rewrite))", "UF: Paraphrased"),
    (r"(?=.*(ultrafeedback|\buf\b))(?=.*french)", "UF: French"),
    (r"(?=.*(ultrafeedback|\buf\b))(?=.*spanish)", "UF: Spanish"),
    (r"(?=.*(reward ?bench|\brb\b))(?=.*math)", "RB: Math"),
    (r"(?=.*(reward ?bench|\brb\b))(?=.*code)", "RB: Code"),
    (r"reward ?math", "RewardMATH"),
    (r".*(ultrafeedback|\buf\b)", "UF"),
]


def type_label(type_name: str) -> str:
    """`explicit` -> EX-RM, as in the paper; a type that the paper does not have: `mean_pool` -> Mean pool."""
    words = type_name.replace("_", " ")
    return _PAPER_LABELS.get(type_name) or words[:1].upper() + words[1:]


_SCHEMA = get_args(get_args(RewardModelSettings)[0])  # the members of Annotated[A | B | ..., discriminator]
_TYPE_NAMES: list[str] = [settings.model_fields["type"].default for settings in _SCHEMA]
TYPE_LABELS = {type_name: type_label(type_name) for type_name in _TYPE_NAMES}
"""reward_model.type -> label, for all types of the recipe schema, in its order."""


def types_in_order(labels: Iterable[str]) -> list[str]:
    """Labels of types without repetition: in the order of the schema, then unknown types alphabetically."""
    known = list(TYPE_LABELS.values())
    return sorted(set(labels), key=lambda label: (known.index(label) if label in known else len(known), label))


def type_of(variant: str) -> str:
    """EX-RM (all repr) -> EX-RM."""
    return variant.partition(" (")[0]


def dataset(name: str, path: str) -> str:
    """The paper's name of an evaluation set, found by its name, else by its path; otherwise the name itself."""
    return _paper_name(name) or _paper_name(path) or name


def training_set(name: str, path: str) -> str:
    """The paper's name of a training set; otherwise its own name, or its folder's if it is only called `train`."""
    generic = name.lower() in ("train", "training")
    known = TRAINING_SETS.get(_paper_name(name) or _paper_name(path) or "") or (_last(path) if generic else name)
    return known[:1].upper() + known[1:]


def variant(settings: dict[str, Any], lora: bool, template: str | None = None) -> str:
    """The type's label with what differs from the standard variant: EX-RM (all repr), IM-RM (no ref) (Figure 7).

    Args:
        template: a chat template that most runs of the language model do not have, see `other_template`.
    """
    notes = []
    if settings.get("pooling") == "mean":
        notes.append("all repr")
    reference = settings.get("reference", "base")
    if reference != "base":
        notes.append("no ref" if reference == "none" else f"ref {_last(reference)}")
    if settings.get("generation_weight"):
        notes.append(f"λ {settings['generation_weight']:g}")
    if lora:
        notes.append("LoRA")
    if template is not None:
        notes.append(f"{template} template")
    name = type_label(settings["type"])
    return f"{name} ({', '.join(notes)})" if notes else name


def other_template(template: str | None, templates: Sequence[str | None]) -> str | None:
    """The name of a run's chat template, if the most frequent one of comparable runs is another."""
    usual = Counter(templates).most_common(1)[0][0]
    return None if template == usual else _last(template).removesuffix(".jinja") if template else "default"


def model_names(bases: Iterable[dict[str, Any]]) -> dict[str, str]:
    """`model_key` -> a short name; no two models share one."""
    distinct = {model_key(base): base for base in bases}
    return distinct_names({key: _model_candidates(base) for key, base in distinct.items()})


def model_key(base: dict[str, Any]) -> str:
    """A key that identifies a language model: id and revision, or the settings it was built with."""
    return json.dumps([base.get("name"), base.get("revision"), base.get("build")], sort_keys=True)


def distinct_names(candidates: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Key -> name: its first candidate, or a later, longer one where two keys would share a name."""
    chosen = {key: names[0] for key, names in candidates.items()}
    for level in range(1, max((len(names) for names in candidates.values()), default=0)):
        used = Counter(chosen.values())
        chosen = {
            key: names[min(level, len(names) - 1)] if used[chosen[key]] > 1 else chosen[key]
            for key, names in candidates.items()
        }
    return chosen


def _model_candidates(base: dict[str, Any]) -> list[str]:
    build = base.get("build")
    if build is not None:
        short = "built base"
        longer = f"{short} ({build.get('corpus')}, seed {build.get('seed')})"
        return [short, longer, f"{short} {json.dumps(build, sort_keys=True)}"]
    name, revision = str(base.get("name")), base.get("revision")
    return [_last(name), name, f"{name}@{revision}"]


@cache
def _paper_name(text: str) -> str | None:
    plain = re.sub(r"[^a-z0-9]+", " ", text.lower())
    return next((name for pattern, name in _PATTERNS if re.match(pattern, plain)), None)


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
