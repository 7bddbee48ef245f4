"""The pairs: released UltraFeedback for training, five released sets for scoring; synthetic pairs for size tiny."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from pathlib import Path

from rmkit.data.preferences import PreferencePair, load_preferences
from rmkit.errors import RmkitError

REPOSITORY = Path(__file__).resolve().parents[1]
TRAINING_SET = "ultrafeedback"
SCORED_SETS = (
    "ultrafeedback",
    "ultrafeedback_paraphrased",
    "ultrafeedback_french",
    "ultrafeedback_spanish",
    "rewardmath",
)
_SYLLABLES = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu"]


def released_folder() -> Path:
    """The folder of the released sets: `$RMKIT_DATA`, else one next to the repository."""
    return Path(os.environ.get("RMKIT_DATA", REPOSITORY.parent / "shared" / "data"))


def training_pairs(folder: Path | None, number: int) -> list[PreferencePair]:
    """The first training pairs of UltraFeedback, or synthetic ones without a folder.

    Raises:
        RmkitError: if the folder has fewer than `number`.
    """
    if folder is None:
        return made_pairs(number, seed=0)
    found = list(load_preferences(TRAINING_SET, root=folder, split="train"))[:number]
    if len(found) < number:
        raise RmkitError(f"{folder / TRAINING_SET} has {len(found)} training pairs.", f"Give --pairs {len(found)}.")
    return found


def scored_pairs(folder: Path | None, number: int) -> dict[str, list[PreferencePair]]:
    """Set name -> its first test pairs, or synthetic ones without a folder."""
    if folder is None:
        return {f"made_{seed}": made_pairs(number, seed) for seed in (1, 2)}
    return {name: list(load_preferences(name, root=folder, split="test", limit=number).pairs) for name in SCORED_SETS}


def made_pairs(number: int, seed: int, prompt: int = 10, response: int = 25) -> list[PreferencePair]:
    """Pairs of nonsense words whose lengths spread as UltraFeedback's do: log-normal, around medians in words.

    Every fourth rejected response begins as the chosen one does.
    """
    draw = random.Random(seed)
    words = ["".join(draw.choices(_SYLLABLES, k=draw.randint(1, 3))) for _ in range(300)]

    def text(median: int) -> str:
        length = min(8 * median, max(1, round(median * draw.lognormvariate(0.0, 0.7))))
        return " ".join(draw.choices(words, k=length))

    pairs = []
    for index in range(number):
        chosen, rejected = text(response) + ".", text(response) + "!"
        if index % 4 == 0:
            rejected = f"{chosen[: len(chosen) // 2]} {rejected}"
        pairs.append(PreferencePair(text(prompt) + "?", chosen, rejected, index))
    return pairs


def write_pairs(path: Path, pairs: Iterable[PreferencePair]) -> None:
    """A .jsonl file with prompt, chosen and rejected."""
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            row = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
