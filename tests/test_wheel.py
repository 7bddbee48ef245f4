"""The wheel: built from a fresh clone, installed into an empty folder, used from elsewhere without the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY
from fresh_clone import write_fresh_clone
from released_clone import write_clone

from rmkit.commands.extras import EXTRAS

pytestmark = pytest.mark.slow

SHORT = ["base.build.steps=20", "training.num_train_epochs=1"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The installed package, a working directory elsewhere, and a function that runs `rmkit` there."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = write_fresh_clone(folder / "clone")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(clone)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("rmkit-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    clone.rename(folder / "gone")  # nothing may refer to it
    (folder / "hidden").mkdir()  # packages of extras, which no command below may import
    for module in (module for modules in EXTRAS.values() for module in modules):
        (folder / "hidden" / f"{module}.py").write_text("raise ImportError('an extra is imported')")
    (folder / "elsewhere").mkdir()

    def rmkit(*arguments, code=0):
        path = f"{folder / 'site'}:{folder / 'hidden'}"
        own = {"PYTHONPATH": path, "RMKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "rmkit", *arguments],
            cwd=folder / "elsewhere",
            env=os.environ | own | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return SimpleNamespace(package=folder / "site" / "rmkit", here=folder / "elsewhere", folder=folder, rmkit=rmkit)


@pytest.fixture(scope="module")
def quickstart(installed):
    """A quickstart cut short; its run directories."""
    installed.rmkit("quickstart", "--seeds", "1", *SHORT)
    return installed.here / "runs" / "quickstart"


def test_the_installed_package_is_the_one_that_runs(installed):
    code = "import rmkit; print(rmkit.__file__)"
    own = {"PYTHONPATH": str(installed.folder / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed.here,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).parent == installed.package


def test_the_wheel_holds_every_file_of_the_package(installed):
    """Every tracked file below rmkit/, recipes/ and accelerate_configs/, the links as what they point to."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    tracked = {Path(line) for line in listed.splitlines()}
    links = {Path("rmkit/recipes"), Path("rmkit/accelerate_configs")}
    assert links <= tracked
    expected = {path.relative_to("rmkit") for path in tracked - links if path.parts[0] == "rmkit"}
    expected |= {path for path in tracked if path.parts[0] in ("recipes", "accelerate_configs")}
    files = (path for path in installed.package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert {path.relative_to(installed.package) for path in files} == expected
    assert not any(path.is_symlink() for path in installed.package.rglob("*"))


def test_quickstart(installed, quickstart):
    assert (installed.here / "report" / "index.html").exists()
    for name in ("exrm_seed0", "imrm_seed0", "exgrm_seed0"):
        assert json.loads((quickstart / name / "run.json").read_text())["metrics"]["paraphrased_test"]["pairs"] == 160


def test_check_under_a_shipped_accelerate_configuration(installed):
    recipe = str(installed.package / "recipes" / "quickstart" / "imrm.yaml")
    output = installed.rmkit("check", recipe, "distributed=cpu", *SHORT)
    assert "original_train" in output
    error = installed.rmkit("check", recipe, "distributed=zero33", code=2)
    assert "Accelerate configuration not found: zero33." in error
    assert "Did you mean zero3?" in error


def test_train_under_a_shipped_accelerate_configuration(installed, quickstart):
    recipe = str(quickstart / "exrm_seed0" / "recipe.yaml")
    installed.rmkit("train", recipe, "output_dir=runs/again", "--config-file", "cpu")
    assert (installed.here / "runs" / "again" / "run.json").exists()


def test_evaluate_a_shipped_suite(installed, models):
    installed.rmkit("prepare", "released", "--source", str(write_clone(installed.folder / "released")))
    as_implicit = ["--type", "implicit", "--beta", "1", "--reference", "none"]
    output = installed.rmkit("evaluate", str(models["qwen2"]), "--suite", "math", *as_implicit)
    results = json.loads((installed.here / "evaluation" / "results.json").read_text())
    assert "rewardmath" in output
    assert "rewardmath" in json.dumps(results)


def test_the_dry_run_of_a_shipped_sweep(installed):
    output = installed.rmkit("sweep", "tiny_quickstart", "--dry-run")
    assert "9 points" in output
    own = installed.here / "own.yaml"  # its base is a shipped recipe
    own.write_text("base: quickstart/exrm\naxes: {training.seed: [0, 1]}\n")
    assert "2 points" in installed.rmkit("sweep", "own.yaml", "--dry-run")
