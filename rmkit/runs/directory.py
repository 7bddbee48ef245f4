"""The files of a run directory, read and written whole: a file is there complete or not at all. No torch.

run.json                   recipe, versions, data, metrics, timings (indented)
recipe.yaml                the resolved recipe
rewards/<set>.parquet      index, chosen_reward, rejected_reward: the final state
rewards/initial/, rewards/epoch_<n>/   the same before training and after an epoch
examples/<set>.parquet     index, texts and token lengths of the responses
model/                     the trained reward model
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rmkit.config.recipe import read_recipe
from rmkit.errors import RmkitError
from rmkit.files import write_text

FORMAT = 1
_ALWAYS = ("recipe.yaml", "run.json")
_CONTENTS = {*_ALWAYS, "rewards", "examples", "model", "checkpoints", "explain", "generation", "theory"}
FINAL = "final"
INITIAL = "initial"


class RunDirectory:
    """Where a run leaves its results."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    def rewards(self, name: str, state: str = FINAL) -> Path:
        """The rewards of a set in a state: `initial`, `epoch_<n>` or `final`."""
        folder = self.path / "rewards"
        return (folder if state == FINAL else folder / state) / f"{name}.parquet"

    def examples(self, name: str) -> Path:
        return self.path / "examples" / f"{name}.parquet"

    def check(self, recipe: str, overwrite: bool = False, resume: bool = False) -> None:
        """Look whether `claim` would take the directory, and change nothing.

        Raises:
            RmkitError: if it holds another run and `overwrite` is off, or files that no run writes, or is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RmkitError(f"output_dir {self.path} is a file.", "Give another output_dir.")
        if self._is_free() or (resume and not overwrite and self._is_of(recipe)):
            return
        if not overwrite:
            raise RmkitError(
                f"output_dir {self.path} holds another run.",
                "Give another output_dir, --overwrite to replace it, or resume=auto to go on with the same recipe.",
            )
        # Only what a run writes is replaced: --overwrite on the wrong folder must not cost anyone their files.
        foreign = sorted(each.name for each in self.path.iterdir() if not _is_written_by_a_run(each.name))
        if foreign or not any((self.path / name).exists() for name in _ALWAYS):
            cause = f"holds {foreign[0]}, which no run writes" if foreign else f"holds no {_ALWAYS[0]}: it is no run"
            raise RmkitError(f"output_dir {self.path} {cause}.", "Give another output_dir.")

    def claim(self, recipe: str, overwrite: bool = False, resume: bool = False) -> None:
        """Take the directory for a run of `recipe` (its YAML text), a new one or, with `resume`, the same one's rest.

        Raises:
            RmkitError: see `check`; or if the directory cannot be made.
        """
        self.check(recipe, overwrite, resume)
        if resume and not overwrite and not self._is_free():
            self._remove_temporary()
            return
        if self.path.exists():
            self._remove()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RmkitError(f"output_dir {self.path} cannot be made: {error}.", "Give another output_dir.") from None
        write_text(self.path / "recipe.yaml", recipe)

    def _is_free(self) -> bool:
        """Whether nothing is there, or only what a run leaves that stopped before its first result."""
        if not self.path.exists():
            return True
        return all(
            each.name == _ALWAYS[0]
            or (each.name == "checkpoints" and each.is_dir() and not any(each.iterdir()))
            or each.name.startswith(".model.")  # of a try before training that was killed
            for each in self.path.iterdir()
        )

    def _is_of(self, recipe: str) -> bool:
        """Whether this is a run of the recipe; keys that one from an older rmkit lacks have their defaults."""
        file = self.path / "recipe.yaml"
        try:
            return file.read_text(encoding="utf-8") == recipe or read_recipe(file).to_yaml() == recipe
        except (OSError, UnicodeDecodeError, RmkitError):
            return False

    def _remove_temporary(self) -> None:
        """What writers left behind that were killed."""
        for folder in (self.path, self.path / "rewards", self.path / "examples"):
            for each in folder.glob(".*"):
                if folder != self.path or _is_written_by_a_run(each.name):
                    shutil.rmtree(each, ignore_errors=True)

    def _remove(self) -> None:
        # The recipe last: what an interruption leaves is still known as a run.
        for each in sorted(self.path.iterdir(), key=lambda each: each.name == _ALWAYS[0]):
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()

    def read(self) -> dict[str, Any]:
        """run.json.

        Raises:
            RmkitError: if it is missing, broken or of another format.
        """
        try:
            content = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RmkitError(f"{self.path} holds no run.json.", "Give a finished run's directory.") from None
        except (OSError, ValueError) as error:
            raise RmkitError(f"{self.record} cannot be read: {error}.", "Run the recipe again.") from None
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise RmkitError(f"{self.record} is of format {found}.", f"This rmkit reads format {FORMAT}.")
        return dict(content)


def _is_written_by_a_run(name: str) -> bool:
    """Also what an interruption may leave: .run.json.x1y2z3, say."""
    return name in _CONTENTS or (name.startswith(".") and name[1:].rpartition(".")[0] in _CONTENTS)
