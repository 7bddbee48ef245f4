"""Prepare a source into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmkit.config.strict_yaml import validate
from rmkit.data.sources import find
from rmkit.data.sources.card import Card, refuse_to_replace, write_card
from rmkit.errors import RmkitError
from rmkit.files import replacing


def prepare_source(
    name: str, given: Mapping[str, Any], output: Path, *, error_label: str, overwrite: bool = False
) -> Card:
    """Prepare a source into the folder `output`, which is written completely or not at all.

    Args:
        given: options, validated strictly.
        error_label: the recipe or command that gives the options, for error messages.
        overwrite: replace an earlier preparation.

    Raises:
        RmkitError: for unknown names and options, data with another layout, or if `output` holds other files.
    """
    source = find(name)
    options = validate(source.options, dict(given), error_label)
    refuse_to_replace(output, overwrite)
    try:
        with replacing(output) as folder:
            card = source.write(options, folder)
            write_card(card, folder)
    except OSError as error:
        raise RmkitError(f"{output} cannot be written: {error}.", "Give another folder, or free disk space.") from None
    return card
