"""What a clone of the authors' repository looks like, in small."""

from __future__ import annotations

from pathlib import Path

import datasets

STAMP = "2025_04_19-17_01_44"
ULTRAFEEDBACK = f"ultrafeedback_seed_982_ntrain_2000_ntest_200_no_translate_prompts_{STAMP}"
FOLDERS = {
    "ultrafeedback": ULTRAFEEDBACK,
    "rewardmath": "rewardmath_seed_982_ntrain_2000_ntest_200_2025_04_13-18_27_54",
    "rewardbench_math": "rewardbench_math_seed_982_ntrain_-1_ntest_200_2025_04_23-15_48_54",
    "rewardbench_code": "rewardbench_code_seed_982_ntrain_-1_ntest_200_2025_04_23-15_49_17",
    "ultrafeedback_paraphrased": f"rewritten/rewrite_gpt-4.1_{ULTRAFEEDBACK}_2025_04_19-19_21_58",
    "ultrafeedback_french": f"rewritten/translate_french_gpt-4.1_{ULTRAFEEDBACK}_2025_04_19-19_37_54",
    "ultrafeedback_spanish": f"rewritten/translate_spanish_gpt-4.1_{ULTRAFEEDBACK}_2025_04_19-19_38_08",
}


def rows(name: str, split: str, number: int) -> datasets.Dataset:
    pairs = {
        "prompt": [f"{split} prompt {each}" for each in range(number)],
        "chosen": [f"{name} good {each}" for each in range(number)],
        "rejected": [f"{name} bad {each}" for each in range(number)],
    }
    if name.startswith("ultrafeedback_"):
        pairs |= {"orig_index": list(range(number)), "orig_chosen": ["x"] * number, "orig_rejected": ["y"] * number}
    return datasets.Dataset.from_dict(pairs)


def write_clone(clone: Path) -> Path:
    """All sets in small, each of 8 training and 4 test pairs."""
    for name, folder in FOLDERS.items():
        made = datasets.DatasetDict({"train": rows(name, "train", 8), "test": rows(name, "test", 4)})
        made.save_to_disk(str(clone / "data_files" / folder))
        (clone / "data_files" / folder / "run_config.json").write_text("{}")
    return clone
