"""Fetch a model that rmkit has published on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError

from rmkit.errors import RmkitError
from rmkit.hub.errors import error_message
from rmkit.hub.publication import PUBLISHED, RECORD


def fetch_published(name: str, revision: str | None = None) -> Path | None:
    """The local folder of a repository that `rmkit push` created; None if `name` is not one.

    Raises:
        RmkitError: if it is one, and cannot be fetched completely.
    """
    try:
        hf_hub_download(name, RECORD, revision=revision)
    except (OSError, HFValidationError):  # not on the Hub, unreachable, or another model: transformers reports it
        return None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(PUBLISHED)))
    except (OSError, ValueError) as error:
        raise RmkitError(
            f"{name} could not be fetched: {error_message(error)}", "Check the network and the access token, and retry."
        ) from None
