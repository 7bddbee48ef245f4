"""Tables of metrics in the terminal."""

from __future__ import annotations

from rmkit.evaluation.tables import print_scores

METRICS = {"pairs": 4, "accuracy": 0.5, "normalized_margin": 0.25, "tie_rate": 0, "longer_wins": 1, "shorter_wins": 0}


def test_a_set_without_a_category_stands_under_no_heading(capsys):
    """data.validation, which has a category, comes before the sets of the recipe, which need not have one."""
    print_scores({"validation": METRICS | {"category": "in-distribution"}, "held_out": METRICS}, "a run")
    printed = capsys.readouterr().out
    assert printed.index("held_out") < printed.index("in-distribution") < printed.index("validation")


def test_the_table_says_that_its_margin_is_normalized(capsys):
    """It has another unit and sign than the margin that a run logs, and that evaluation.save_best follows."""
    print_scores({"held_out": METRICS | {"margin": -0.5}}, "a run")
    printed = " ".join(capsys.readouterr().out.split())
    assert "0.250" in printed
    assert "margin: normalized, never negative" in printed
