"""The paper's sets, prepared from their public sources, one file per set.

A module of this folder that defines `SOURCES` adds its sets to `rmkit prepare` and to `source:` in recipes and suites
(docs/add-a-data-set.md).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from rmkit.errors import RmkitError

if TYPE_CHECKING:
    from rmkit.data.sources.base import Source


@cache
def sources() -> dict[str, Source]:
    """Every source by its name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {source.name: source for module in modules for source in getattr(module, "SOURCES", ())}


def find(name: str) -> Source:
    """The source with a name.

    Raises:
        RmkitError: if there is none, with the closest name.
    """
    known = sources()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        remedy = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(sorted(known))}."
        raise RmkitError(f"Unknown source of preference pairs: {name}.", remedy)
    return known[name]
