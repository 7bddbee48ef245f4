"""Sizes of a scoring pass."""

DEFAULT_BATCH_SIZE = 16
"""Responses per forward pass."""

WINDOW = 1024
"""Number of pairs that are sorted together, and the most that `rmkit score` holds in memory."""
