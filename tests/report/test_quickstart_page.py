"""The quickstart's page and its documentation: one text for both."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd
from conftest import REPOSITORY

from rmkit.report.quickstart import PANELS, RESULT_COLUMNS, figure, results_table, terminal_table
from rmkit.report.quickstart_text import CAVEATS, LEAD, SMOLLM2

TYPES = {"explicit": "EX-RM", "implicit": "IM-RM", "generative": "EX-GRM"}


def frame(types, accuracy=1.0) -> pd.DataFrame:
    rows = [
        (type_name, seed, epoch, name, accuracy if epoch else 0.5 + 0.1 * seed, 1.0)
        for type_name in types
        for seed in (0, 1)
        for epoch in (0, 1, 2)
        for name in PANELS
    ]
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def test_the_documentation_has_the_caveats_of_the_page():
    text = " ".join((REPOSITORY / "docs" / "quickstart.md").read_text(encoding="utf-8").split())
    for title, caveat in (CAVEATS | SMOLLM2.caveats).items():
        assert f"### {title} {caveat}" in text
    assert SMOLLM2.lead in text
    assert LEAD.rpartition(". ")[2].partition(" language models")[0] in text  # "It is not evidence about the"


def test_the_readme_and_the_recipes_leave_the_caveats_to_the_documentation():
    files = [REPOSITORY / "README.md", *(REPOSITORY / "recipes" / "quickstart").glob("*.yaml")]
    assert len(files) == 4
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "docs/quickstart.md" in text
        assert not any(caveat[:60] in text for caveat in CAVEATS.values())


def test_tables_show_final_accuracies_and_those_before_training():
    table = results_table(frame(TYPES))
    assert table.header == ["set", *TYPES.values()]
    assert [cell.text for cell in table.rows[0][1:]] == ["1.00"] * 3
    assert [cell.below for cell in table.rows[0][1:]] == ["0.50–0.60"] * 3
    assert [str(column.header) for column in terminal_table(frame(TYPES)).columns] == ["set", *TYPES.values()]


def test_labels_do_not_overlap_where_lines_end_together():
    for panel in figure(frame([*TYPES, "mean_pool"])).axes:
        heights = sorted(text.xy[1] for text in panel.texts)
        assert [text.get_text() for text in panel.texts] == ["Mean pool", "EX-GRM", "IM-RM", "EX-RM"]  # from below
        assert len(heights) == 4
        assert all(upper - lower >= 0.1 - 1e-9 for lower, upper in pairwise(heights))
        assert heights[0] >= 0
        assert heights[-1] <= 1
