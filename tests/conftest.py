"""Shared fixtures: everything is offline, small and seeded."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import tiny

REPOSITORY = Path(__file__).resolve().parents[1]
RELEASED = Path(os.environ.get("RMKIT_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny language model of every architecture."""
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.save_language_model(folder / name, name) for name in tiny.ARCHITECTURES}


@pytest.fixture(scope="session")
def released() -> Path:
    """The paper's released sets; skips where they are absent."""
    if not (RELEASED / "rewardmath").is_dir():
        pytest.skip("the released sets are not here")
    return RELEASED
