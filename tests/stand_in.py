"""Stands in for `rmkit train` in tests of sweeps: leaves a run as that does, in the same order, but trains nothing.

    python stand_in.py RECIPE

What is to happen is in $STAND_IN, JSON: the name of a point -> fail | stop (wait for a signal) | kill:<stage> (end the
sweep itself, then wait), with the stages start, directory, recipe, rewards. $STAND_IN_CALLS is a file to which every
call adds a line; $STAND_IN_STARTED a FIFO that is told when a point has begun to wait.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import yaml


def main() -> None:
    """One call."""
    recipe = yaml.safe_load(Path(sys.argv[1]).read_text())
    run = Path(recipe["output_dir"])
    what = json.loads(os.environ.get("STAND_IN", "{}")).get(run.name, "")
    with open(os.environ["STAND_IN_CALLS"], "a") as calls:
        calls.write(f"{run.name} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}\n")

    def reached(stage: str) -> None:
        if what == f"kill:{stage}":
            os.kill(int(os.environ["STAND_IN_SWEEP"]), signal.SIGKILL)
            signal.pause()

    reached("start")
    run.mkdir(parents=True, exist_ok=True)
    (run / ".recipe.yaml.tmp").mkdir()
    reached("directory")
    (run / ".recipe.yaml.tmp").rmdir()
    (run / "recipe.yaml").write_text(Path(sys.argv[1]).read_text())
    reached("recipe")
    (run / "rewards").mkdir(exist_ok=True)
    (run / "rewards" / "test.parquet").write_text(f"rewards of seed {recipe['training']['seed']}")
    reached("rewards")
    if what == "fail":
        print("  5%|  bar| 1/20\rerror: the point [b]fails[/b]\n  fix: mend it")
        sys.exit(3)
    if what == "stop":
        Path(os.environ["STAND_IN_STARTED"]).write_text("started")
        signal.pause()
    (run / "run.json").write_text(json.dumps({"format": 1, "recipe": recipe, "metrics": {}}))


if __name__ == "__main__":
    main()
