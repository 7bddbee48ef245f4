"""The paper's sets, one file each, prepared from their public sources.

A module of this folder that has `SOURCES` adds those sets to `rmkit prepare` and to `source:` in recipes and suites.
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
    modules = [importlib.import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)]
    return {each.name: each for module in modules for each in getattr(module, "SOURCES", ())}


def find(name: str) -> Source:
    """The source of a name.

    Raises:
        RmkitError: if there is none.
    """
    known = sources()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        remedy = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(sorted(known))}."
        raise RmkitError(f"{name} is no source of preference pairs.", remedy)
    return known[name]
