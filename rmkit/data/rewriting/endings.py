"""Rewrites that end in the middle, as those do that were cut at a number of tokens. Needs no extra."""

from __future__ import annotations


def ends_early(original: str, rewrite: str) -> bool:
    """Whether a rewrite seems cut: it ends in a letter or digit, and the original in something else."""
    return rewrite.rstrip()[-1:].isalnum() and not original.rstrip()[-1:].isalnum()
