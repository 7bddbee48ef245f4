"""How runs, models and sets are called in tables and figures: the paper's names where they fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

EX, IM, GRM = "EX-RM", "IM-RM", "EX-GRM"
REWARD_MODELS = {"explicit": EX, "implicit": IM, "generative": GRM}
"""reward_model.type -> the paper's name, in the paper's order."""

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


def dataset(name: str, path: str) -> str:
    """The paper's name of an evaluation set, by its name or else by where it lies; otherwise the name itself."""
    return _papers_name(name) or _papers_name(path) or name


def training_set(name: str, path: str) -> str:
    """The paper's name of a training set; otherwise its own, or its folder's where it is only called train."""
    known = TRAINING_SETS.get(_papers_name(name) or _papers_name(path) or "")
    generic = name.lower() in ("train", "training")
    return known or (_last(path) if generic else name)


def variant(settings: dict[str, Any], lora: bool) -> str:
    """The type and what sets it apart from the paper's standard one: EX-RM (all repr), IM-RM (no ref) (Figure 7)."""
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
    name = REWARD_MODELS[settings["type"]]
    return f"{name} ({', '.join(notes)})" if notes else name


def model_names(bases: Iterable[dict[str, Any]]) -> dict[str, str]:
    """A short name for each language model, keyed by `model_key`: no two models share one."""
    distinct = {model_key(base): base for base in bases}
    return _shortest({key: _model_candidates(base) for key, base in distinct.items()})


def model_key(base: dict[str, Any]) -> str:
    """What tells two language models apart: id and revision, or how it was built."""
    return json.dumps([base.get("name"), base.get("revision"), base.get("build")], sort_keys=True)


def distinct_names(candidates: dict[str, list[str]]) -> dict[str, str]:
    """key -> the first of its candidates at which no two keys have the same name."""
    return _shortest(candidates)


def _model_candidates(base: dict[str, Any]) -> list[str]:
    build = base.get("build")
    if build is not None:
        short = "built base"
        longer = f"{short} ({build.get('corpus')}, seed {build.get('seed')})"
        return [short, longer, f"{short} {json.dumps(build, sort_keys=True)}"]
    name, revision = str(base.get("name")), base.get("revision")
    return [_last(name), name, f"{name}@{revision}"]


def _shortest(candidates: dict[str, list[str]]) -> dict[str, str]:
    chosen = {key: names[0] for key, names in candidates.items()}
    for level in range(1, max((len(names) for names in candidates.values()), default=0)):
        taken = list(chosen.values())
        chosen = {
            key: names[min(level, len(names) - 1)] if taken.count(chosen[key]) > 1 else chosen[key]
            for key, names in candidates.items()
        }
    return chosen


def _papers_name(text: str) -> str | None:
    plain = re.sub(r"[^a-z0-9]+", " ", text.lower())
    return next((name for pattern, name in _PATTERNS if re.match(pattern, plain)), None)


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
