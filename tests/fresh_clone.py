"""What a fresh clone holds: a copy of the files that git tracks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from conftest import REPOSITORY


def write_fresh_clone(folder: Path) -> Path:
    """Copy every tracked file, symbolic links as links."""
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for file in files.splitlines():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, folder / file, follow_symlinks=False)
    return folder
