"""The optional packages of commands: extras of pyproject.toml, reported with their pip line where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from rmkit.errors import RmkitError

EXTRAS = {
    "rewrite": ("babel", "openai", "py3langid", "tenacity"),
    "slurm": ("submitit",),
    "theory": ("daqp", "qpsolvers"),
}
"""Extra -> the modules that a command imports from it."""


def require_extra(extra: str, command: str) -> None:
    """Check that the packages of an extra are installed, before a command imports any of them.

    Raises:
        RmkitError: naming the first missing package, and the pip command that installs the extra.
    """
    missing = next((module for module in EXTRAS[extra] if find_spec(module) is None), None)
    if missing is not None:
        raise RmkitError(
            f"{command} needs the package {missing}, which is not installed.",
            f'Install it with `pip install "rmkit[{extra}]"`.',
        )
