"""The look of pages: one palette for CSS and figures, and wide tables that show on a phone that they scroll."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from matplotlib.figure import Figure

from rmkit.report import figures, palette, style
from rmkit.report.html import Drawing, Section, page
from rmkit.report.tables import plain_table

ROOM = REPOSITORY / "rmkit" / "report"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 390  # CSS pixels


def test_colours_are_written_in_one_place():
    """All but white and black inks on top of colours."""
    for path in ROOM.iterdir():
        if path.suffix in (".py", ".html") and path.name != "palette.py":
            found = set(re.findall(r"#[0-9a-fA-F]{6}\b", path.read_text(encoding="utf-8")))
            assert found <= {"#ffffff", "#1a1a1a", "#101010"}, path


def test_the_page_defines_every_variable_that_it_and_its_figures_use():
    frame = pd.DataFrame({"label": ["a"], "first": [50.0], "tie": [20.0], "second": [30.0]})
    text = page("x", [Section("s", [Drawing("x", "X", figures.win_rates(frame, "EX-RM"))])])
    light, dark = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)[:2]
    for scheme in (light, dark):
        defined = set(re.findall(r"--([a-z0-9-]+):", scheme))
        assert {"paper", "ink", "type-1", "type-2", "shadow"} <= defined
        assert set(re.findall(r"var\(--([a-z0-9-]+)", text)) <= defined | {"width", "amount", "shade"}
    assert f"--type-2: {palette.ORANGE.light};" in light
    assert f"--type-2: {palette.ORANGE.dark};" in dark
    assert f"fill: var(--type-2, {palette.ORANGE.light})" in text


def test_no_two_colours_of_a_drawing_become_one_on_a_page():
    assert len(palette.replacements()) == 3 + len(palette.TYPES)
    assert len(set(palette.replacements().values())) == len(palette.replacements())


def contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_on_light_and_dark_pages():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colour in (palette.INK, palette.MUTED, palette.LINK, palette.WARNING):
        for ground in (palette.PAPER, palette.PANEL):
            assert contrast(colour.light, ground.light) >= 4.5
            assert contrast(colour.dark, ground.dark) >= 4.5
    for type_style in palette.TYPES:  # labels in bold, and lines
        assert contrast(type_style.colour.light, palette.PAPER.light) >= 3
        assert contrast(type_style.colour.dark, palette.PAPER.dark) >= 3


def screenshot(folder: Path, columns: int) -> np.ndarray:
    """A page with a table of so many columns on a screen as wide as a phone's: grey levels [rows, PHONE]."""
    frame = pd.DataFrame({f"a long column name {number}": [""] * 3 for number in range(columns)})
    (folder / "page.html").write_text(page("x", [Section("s", [plain_table("t", "", frame)])]), encoding="utf-8")
    inside = f'<iframe src="page.html" style="border:0;width:{PHONE}px;height:600px"></iframe>'  # windows are wider
    (folder / "frame.html").write_text(f'<body style="margin:0">{inside}', encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=800,600"]
    subprocess.run(
        [
            str(CHROMIUM),
            *options,
            f"--user-data-dir={folder / 'profile'}",
            f"--screenshot={folder / 'page.png'}",
            (folder / "frame.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return matplotlib.image.imread(folder / "page.png")[:, :PHONE, :3].mean(axis=2)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("columns", "scrolls"), [(1, False), (12, True)])
def test_a_wide_table_has_a_shadow_where_it_goes_on(tmp_path: Path, columns: int, scrolls: bool):
    seen = screenshot(tmp_path, columns)
    left, right = 16, PHONE - 16  # the margins of the page
    rows = slice(None)
    shadow = float(np.percentile(1 - seen[rows, right - 3 : right], 90))
    ground = 1 - int(palette.SHADOW.light[1:3], 16) / 255
    assert (shadow > ground / 3) == scrolls, shadow
    assert float(np.percentile(1 - seen[rows, left : left + 3], 50)) < 0.02  # nothing to the left
    assert float(np.percentile(1 - seen[rows, right + 2 :], 99)) < 0.02  # the page itself does not scroll


def test_a_figure_keeps_its_file_colours_off_pages():
    svg = style.plain_svg(Figure())
    assert "var(" not in svg
