"""The files of a run directory, written completely or not at all. No torch.

run.json                   recipe, versions, data, metrics, timings (indented)
recipe.yaml                the resolved recipe
rewards/<set>.parquet      index, chosen_reward, rejected_reward in the final state (see `runs.rewards`)
rewards/initial/, rewards/epoch_<n>/   the same before training and after an epoch
checkpoints/               checkpoints to resume from; best/ holds the best model so far until the run ends
examples/<set>.parquet     index, texts and token counts of the responses
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
    """The directory of a run's results."""

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
        """Check whether `claim` would succeed, without changing anything.

        Raises:
            RmkitError: if the directory holds another run and `overwrite` is off, or foreign files, or is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RmkitError(f"output_dir {self.path} is a file.", "Give another output_dir.")
        if self._is_free() or (resume and not overwrite and self._is_of(recipe)):
            return
        if not overwrite:
            raise RmkitError(
                f"output_dir {self.path} holds another run.",
                "Give another output_dir, --overwrite to replace it, or resume=auto to resume the same recipe.",
            )
        # Only files of a run are replaced: --overwrite on a wrong folder must not delete other files.
        foreign = sorted(path.name for path in self.path.iterdir() if not _is_written_by_run(path.name))
        if foreign or not any((self.path / name).exists() for name in _ALWAYS):
            cause = f"holds {foreign[0]}, which no run writes" if foreign else f"has no {_ALWAYS[0]}: it is not a run"
            raise RmkitError(f"output_dir {self.path} {cause}.", "Give another output_dir.")

    def claim(self, recipe: str, overwrite: bool = False, resume: bool = False) -> None:
        """Take the directory for a run of `recipe` (its YAML text): a new run or, with `resume`, the same one resumed.

        Raises:
            RmkitError: see `check`; or if the directory cannot be created.
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
            raise RmkitError(
                f"output_dir {self.path} cannot be created: {error}.", "Give another output_dir."
            ) from None
        write_text(self.path / "recipe.yaml", recipe)

    def _is_free(self) -> bool:
        """Whether there is nothing, or only the files of a run that stopped before its first result."""
        if not self.path.exists():
            return True
        return all(
            path.name == _ALWAYS[0]
            or (path.name == "checkpoints" and path.is_dir() and not any(path.iterdir()))
            or path.name.startswith(".model.")  # of a preflight check that was killed
            for path in self.path.iterdir()
        )

    def _is_of(self, recipe: str) -> bool:
        """Whether this is a run of the recipe; keys missing in recipes of an older rmkit have their defaults."""
        file = self.path / "recipe.yaml"
        try:
            return file.read_text(encoding="utf-8") == recipe or read_recipe(file).to_yaml() == recipe
        except (OSError, UnicodeDecodeError, RmkitError):
            return False

    def _remove_temporary(self) -> None:
        """Remove the temporary files of killed writers."""
        for folder in (self.path, self.path / "rewards", self.path / "examples"):
            for path in folder.glob(".*"):
                if folder != self.path or _is_written_by_run(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def _remove(self) -> None:
        # The recipe last: after an interruption the rest is still recognised as a run.
        for path in sorted(self.path.iterdir(), key=lambda path: path.name == _ALWAYS[0]):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def read(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            RmkitError: if it is missing, damaged or has another format.
        """
        try:
            content = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RmkitError(f"{self.path} has no run.json.", "Give the directory of a finished run.") from None
        except (OSError, ValueError) as error:
            raise RmkitError(f"{self.record} cannot be read: {error}.", "Run the recipe again.") from None
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise RmkitError(f"{self.record} has format {found}.", f"This rmkit reads format {FORMAT}.")
        return dict(content)


def _is_written_by_run(name: str) -> bool:
    """Whether a run writes a file of this name, including temporary ones such as .run.json.x1y2z3."""
    return name in _CONTENTS or (name.startswith(".") and name[1:].rpartition(".")[0] in _CONTENTS)
