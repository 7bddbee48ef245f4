"""Sets as recipes and suites name them: loaded from a path, prepared first where they name a source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rmkit.preferences import PreferenceData, load_preferences
from rmkit.recipe import PreferenceSet


def load_set(each: PreferenceSet, *, root: Path | None, identical: Literal["drop", "error"] = "drop") -> PreferenceData:
    """The pairs of a set.

    Raises:
        RmkitError: see `rmkit.preferences.load_preferences` and `rmkit.sources.base.prepare`.
    """
    return load_preferences(
        str(each.path),
        name=each.name,
        split=each.split,
        root=root,
        subset=each.subset,
        revision=each.revision,
        where=each.where,
        limit=each.limit,
        identical=identical,
    )
