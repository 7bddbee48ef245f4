"""benchmarks/: its arithmetic by hand, and the whole of it once at size tiny."""

from __future__ import annotations

import json
import sys

import pytest
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from benchmarks import growth, results
from benchmarks.__main__ import app
from benchmarks.arithmetic import Counts, counts, flops, forward_flops, shared_prefix, spread
from benchmarks.figure import draw, ratios
from benchmarks.measure import difference, find_cause, measure_all, plan, run_process
from benchmarks.pairs import made_pairs, write_pairs
from benchmarks.prepare import prepare
from benchmarks.results import Couple, Entry, Line
from benchmarks.setting import Job, Measurement, Setting, Workspace
from benchmarks.shapes import SHAPES, Shape
from benchmarks.worker import measure
from rmkit.encoding.chat import TokenSequence
from rmkit.errors import RmkitError

KEYS = {
    "work",
    "micro_batch",
    "baseline",
    "ratio_min",
    "ratio_median",
    "ratio_max",
    "seconds",
    "baseline_seconds",
    "matmul_share",
    "peak_mib",
}
SHAPE = Shape(100, 4, 10, 2, 2, 1, 3)
SETTING = Setting(size="tiny", source="made", pairs=8, scoring_pairs=2, batch_size=4)


# --- arithmetic ----------------------------------------------------------------------------------------------------

# Prompt 1 2 3; the responses share their first token 4, then differ: 4 5 6 and 4 7.
PAIR = (TokenSequence([1, 2, 3, 4, 5, 6], 3), TokenSequence([1, 2, 3, 4, 7], 3))


def test_a_pairs_unique_tokens_are_its_shared_prefix_and_the_two_rests():
    assert shared_prefix(PAIR[0].ids, PAIR[1].ids) == 4
    counted = counts("explicit", [PAIR])
    assert (counted.pairs, counted.tokens, counted.unique_tokens) == (1, 11, 4 + 2 + 1)
    assert counts("explicit", [PAIR] * 3).unique_tokens == 21
    same_until_the_end = (TokenSequence([1, 2, 3], 1), TokenSequence([1, 2, 3, 4], 1))
    assert counts("explicit", [same_until_the_end]).unique_tokens == 4


def test_heads_are_read_at_the_last_tokens_or_before_every_token_of_the_responses():
    assert counts("explicit", [PAIR, PAIR]).heads_read == 4
    # After 3 (predicts 4), after 4 (predicts 5 and 7), after 5 (predicts 6): each position once.
    assert counts("implicit", [PAIR]).heads_read == 3
    apart = (TokenSequence([1, 2, 5, 6], 2), TokenSequence([1, 2, 7, 8, 9], 2))
    assert counts("implicit", [apart]).heads_read == 1 + 1 + 2


def test_weights_of_a_shape_by_hand():
    # q 4x6, k and v 4x3, o 6x4; gate, up and down 4x10; two layers.
    assert SHAPE.layer_weights == 2 * (24 + 12 + 12 + 24 + 40 + 40 + 40)
    assert SHAPE.head_weights == 400
    assert SHAPE.parameters == 384 + 400 + 5 * 4


def test_flops_by_hand():
    counted = Counts(pairs=1, tokens=11, unique_tokens=7, heads_read=2)
    assert forward_flops("explicit", SHAPE, counted) == 2 * (384 * 7 + 4 * 2)
    assert forward_flops("generative", SHAPE, counted) == 2 * (384 * 7 + 400 * 2)
    assert flops("explicit", SHAPE, counted, epochs=1, reference_passes=0) == 6 * (384 * 7 + 4 * 2)
    assert flops("implicit", SHAPE, counted, epochs=5, reference_passes=1) == (5 * 6 + 2) * (384 * 7 + 400 * 2)
    assert flops("scoring", SHAPE, counted, epochs=1, reference_passes=0) == 2 * (384 * 7 + 4 * 2)


def test_the_shapes_are_of_their_sizes():
    parameters = {size: shape.parameters / 1e6 for size, shape in SHAPES.items()}
    assert parameters["19m"] == pytest.approx(19.1, abs=0.1)
    assert parameters["1b"] == pytest.approx(1235.8, abs=0.1)  # as the models' cards say: 1.23B and 3.21B
    assert parameters["3b"] == pytest.approx(3212.7, abs=0.1)


def test_spread():
    assert spread([3.0, 1.0, 10.0]) == (1.0, 3.0, 10.0)
    assert spread([1.0, 2.0]) == (1.0, 1.5, 2.0)


# --- results -------------------------------------------------------------------------------------------------------


def couple(baseline, ours, reference=0.0, baseline_reference=0.0, peak=10.0, rate=1e6):
    return Couple(
        baseline_seconds=baseline,
        baseline_reference_seconds=baseline_reference,
        baseline_peak_mib=2 * peak,
        seconds=ours,
        reference_seconds=reference,
        peak_mib=peak,
        difference=None,
        matmul_rate=rate,
        machine={},
    )


def entry(line, couples):
    counted = Counts(pairs=2, tokens=60, unique_tokens=40, heads_read=4)
    return Entry.of(line, couples, SETTING, counted)


def test_figures_of_an_entry():
    couples = [couple(6, 2, peak=11), couple(4, 2, rate=5e5), couple(8, 4, rate=8e5)]
    found = entry(Line("explicit", 4, "stock"), couples)
    assert (found.ratio_min, found.ratio_median, found.ratio_max) == (2, 2, 3)
    assert (found.seconds, found.baseline_seconds) == (2, 6)
    assert (found.peak_mib, found.baseline_peak_mib) == (11, 22)
    assert found.tokens_per_second == 20
    arithmetic = 6 * (SHAPES["tiny"].layer_weights * 40 + 64 * 4)
    assert found.matmul_share == pytest.approx(arithmetic / 2 / 1e6)
    assert found.epochs == 1


def test_implicit_entries_are_for_five_epochs_and_one_reference_pass():
    found = entry(Line("implicit", 4, "stock_best"), [couple(4, 2, reference=2, baseline_reference=4)])
    assert (found.baseline_seconds, found.seconds) == (4 + 5 * 4, 2 + 5 * 2)
    assert found.ratio_median == 2
    assert found.tokens_per_second == pytest.approx(5 * 40 / 12)
    layers, head = SHAPES["tiny"].layer_weights * 40, SHAPES["tiny"].head_weights * 4
    assert found.matmul_share == pytest.approx(32 * (layers + head) / 12 / 1e6)


def test_results_are_read_as_they_were_written(tmp_path):
    entries = [entry(Line("scoring", 8, "plain"), [couple(3, 1)]), entry(Line("implicit", 8, "stock"), [couple(9, 1)])]
    results.write(tmp_path / "cpu.json", entries)
    assert results.read(tmp_path / "cpu.json") == entries
    assert all(set(each) >= KEYS for each in json.loads((tmp_path / "cpu.json").read_text()))
    (tmp_path / "broken.json").write_text('[{"work": "scoring"}]')
    assert results.read(tmp_path / "broken.json") == results.read(tmp_path / "missing.json") == []


def test_the_plan_brings_every_work_early_and_names_every_line_once():
    lines = plan()
    assert {line.work for line in lines[:4]} == {"explicit", "implicit", "generative", "scoring"}
    assert len(set(lines)) == len(lines) == 11
    assert plan(["generative"], [2]) == [Line("generative", 2, "padded")]


# --- in turn -------------------------------------------------------------------------------------------------------

LINES = [Line("explicit", 4, "stock"), Line("implicit", 4, "stock_best")]


class Interrupted(Exception):
    pass


def measured(log, fail_at=None):
    def measure(line, side):
        if len(log) == fail_at:
            raise Interrupted
        log.append((line, side))
        return Measurement(seconds=2 if side == "ours" else 6, peak_mib=1, losses=[0.7])

    return measure


def test_baseline_and_ours_are_measured_in_turn():
    log, done = [], {}
    measure_all(LINES, 2, measured(log), done, lambda *_: None, SETTING)
    one_round = [(line, side) for line in LINES for side in (line.baseline, "ours")]
    assert log == one_round * 2
    assert [each.totals(1) for each in done[LINES[0]]] == [(6, 2), (6, 2)]


@pytest.mark.parametrize("fail_at", [1, 2, 3, 6])
def test_what_was_measured_before_an_interruption_is_not_measured_again(fail_at):
    log, done, noted = [], {}, []
    arguments = (done, lambda line, couples: noted.append((line, len(couples))), SETTING)
    with pytest.raises(Interrupted):
        measure_all(LINES, 2, measured(log, fail_at), *arguments)
    assert len(noted) == fail_at // 2
    again = []
    measure_all(LINES, 2, measured(again), *arguments)
    assert len(again) == 8 - 2 * (fail_at // 2)
    assert noted == [(LINES[0], 1), (LINES[1], 1), (LINES[0], 2), (LINES[1], 2)]


def test_couples_that_did_not_compute_the_same_are_refused():
    def losses(*values):
        return Measurement(seconds=1, peak_mib=1, losses=list(values))

    stock, best = LINES
    assert difference(stock, losses(0.7, 0.6), losses(0.7, 0.60001), SETTING) == pytest.approx(1e-5)
    assert difference(best, losses(0.7, 0.6), losses(0.5, 0.8), SETTING) is None  # another order of the pairs
    for theirs, ours in ((losses(0.7), losses(0.71)), (losses(0.7), losses(0.7, 0.6))):
        with pytest.raises(RmkitError):
            difference(stock, theirs, ours, SETTING)
    scored = [Measurement(seconds=1, peak_mib=1, rewards=[(0.5, each)]) for each in (0.25, 0.26)]
    assert difference(Line("scoring", 8, "plain"), scored[0], scored[0], SETTING) == 0
    with pytest.raises(RmkitError):
        difference(Line("scoring", 8, "plain"), *scored, SETTING)


# --- the whole -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks") / "workspace"
    prepare(SETTING, None, folder)
    return Workspace(folder)


def test_a_shapes_weights_are_those_of_the_model_that_is_built(workspace):
    shape = SETTING.shape
    model = AutoModelForCausalLM.from_pretrained(workspace.base)
    assert sum(each.numel() for each in model.parameters()) == shape.parameters
    linear = [each for name, each in model.named_modules() if isinstance(each, nn.Linear) and name != "lm_head"]
    assert sum(each.weight.numel() for each in linear) == shape.layer_weights
    classifier = AutoModelForSequenceClassification.from_pretrained(workspace.classifier)
    assert classifier.score.weight.shape == (1, shape.hidden_size)


def test_counts_of_a_workspace(workspace):
    found = workspace.read_counts()
    assert {work: each.pairs for work, each in found.items()} == {
        "explicit": 8,
        "implicit": 8,
        "generative": 8,
        "scoring": 4,
    }
    assert found["explicit"].unique_tokens == found["implicit"].unique_tokens < found["explicit"].tokens
    assert 2 * 8 < found["implicit"].heads_read < found["implicit"].unique_tokens


def test_made_pairs_spread_as_real_ones_do():
    pairs = made_pairs(200, seed=0)
    lengths = sorted(len(pair.chosen.split()) for pair in pairs)
    assert lengths[100] == pytest.approx(25, abs=5)
    assert lengths[180] > 2 * lengths[100] > 4 * lengths[20]
    assert all(pair.chosen != pair.rejected for pair in pairs)


@pytest.mark.slow
@pytest.mark.smoke
def test_size_tiny_from_end_to_end(tmp_path):
    """In processes of their own, as `make bench` runs them; then on with what is there already."""
    output = tmp_path / "tiny.json"
    arguments = ["--size", "tiny", "--pairs", "4", "--scoring-pairs", "4", "--batch-size", "4", "--work", "scoring"]
    arguments += ["--micro-batch", "2", "--repeats", "1", "--output", str(output), "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    (content,) = json.loads(output.read_text())
    assert set(content) >= KEYS
    assert (content["work"], content["micro_batch"], content["baseline"]) == ("scoring", 8, "plain")
    assert content["ratio_min"] == content["ratio_median"] == content["ratio_max"] > 0
    assert content["ratio_median"] == pytest.approx(content["baseline_seconds"] / content["seconds"])
    assert content["peak_mib"] > 0
    assert content["matmul_share"] > 0
    assert content["differ_by"] < 1e-4  # the rewards of a plain loop are rmkit's
    assert "1 of 1" in done.output
    output.with_suffix(".png").unlink()
    before = output.read_bytes()
    again = CliRunner().invoke(app, [*arguments, "--resume"])
    assert again.exit_code == 0, again.output
    assert output.read_bytes() == before  # nothing was measured again
    assert "1 of 1" not in again.output
    assert output.with_suffix(".png").stat().st_size > 1000


def test_other_lines_of_a_setting_stay_and_other_sizes_too(tmp_path, monkeypatch):
    """A table of some works changes nothing else in the file; one of another setting takes its size's place."""
    output = tmp_path / "tiny.json"
    other = Setting(size="19m", source="made", pairs=16, scoring_pairs=4, batch_size=16)
    counted = Counts(pairs=2, tokens=60, unique_tokens=40, heads_read=4)
    kept = [
        Entry.of(Line("explicit", 4, "stock"), [couple(3, 1)], other, counted),
        entry(Line("implicit", 4, "stock"), [couple(3, 1)]),
        entry(Line("scoring", 8, "plain"), [couple(3, 1)]),
    ]
    folder = tmp_path / "workspace"
    folder.mkdir()
    Workspace(folder).counts.write_text(json.dumps({"scoring": counted.as_dict()}))
    monkeypatch.setattr("benchmarks.__main__.ensure_workspace", lambda *_: folder)
    measured = Measurement(seconds=2, peak_mib=1, rewards=[(0.5, 0.25)], matmul_rate=1e6)
    monkeypatch.setattr("benchmarks.__main__.Processes.measure", lambda *_: measured)

    def measure_scoring(*options):
        results.write(output, kept)
        arguments = ["--size", "tiny", "--pairs", "8", "--scoring-pairs", "2", "--batch-size", "4", "--work", "scoring"]
        arguments += ["--micro-batch", "4"]
        done = CliRunner().invoke(app, [*arguments, "--output", str(output), "--repeats", "2", *options])
        assert done.exit_code == 0, done.output
        return results.read(output)

    found = measure_scoring()
    assert found[:2] == kept[:2]
    assert [each.totals(1) for each in found[2].couples] == [(2, 2), (2, 2)]
    found = measure_scoring("--resume")
    assert found[:2] == kept[:2]
    assert [each.totals(1) for each in found[2].couples] == [(3, 1), (2, 2)]
    found = measure_scoring("--warm-up")
    assert [(each.size, each.work) for each in found] == [("19m", "explicit"), ("tiny", "scoring")]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("work", "baseline"),
    [("explicit", "stock"), ("implicit", "stock"), ("implicit", "stock_best"), ("generative", "padded")],
)
def test_both_sides_of_training(workspace, work, baseline, tmp_path, monkeypatch):
    """In this process. That TRL's losses are rmkit's says that tokens, head, order and steps are the same."""

    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path))  # which measuring rmkit changes

    def side(name):
        job = Job(setting=SETTING, workspace=str(workspace.path), work=work, micro_batch=2, side=name)
        return measure(job, tmp_path)

    line, theirs, ours = Line(work, 2, baseline), side(baseline), side("ours")
    found = difference(line, theirs, ours, SETTING)
    assert found is None if baseline == "stock_best" else found < 1e-5
    assert len(theirs.losses) == len(ours.losses) == SETTING.pairs // SETTING.batch_size
    assert theirs.seconds > 0
    assert ours.seconds > 0
    assert ours.peak_mib > 0
    assert ours.matmul_rate > 0
    assert (theirs.reference_seconds > 0) == (baseline == "stock_best")
    assert (ours.reference_seconds > 0) == (work == "implicit")


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(RmkitError, match="No results in"):
        run_process(["figure"], tmp_path, SETTING)
    assert find_cause("Traceback\nValueError: no\n") == "ValueError: no"
    assert find_cause("error: no pairs\n  fix: give some\n") == "no pairs"


@pytest.mark.parametrize(
    "arguments",
    [["--size", "huge"], ["--pairs", "5"], ["--work", "flying"], ["--micro-batch", "3"], ["--data", "nowhere"]],
)
def test_what_cannot_be_measured_is_refused(arguments):
    done = CliRunner().invoke(app, ["--size", "tiny", *arguments])
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_seconds_and_memory_of_a_process():
    found = growth.run_measured([sys.executable, "-c", "x = bytearray(100 * 2**20)"])
    assert found["peak_mib"] > 100
    assert found["seconds"] > 0
    with pytest.raises(RmkitError, match="broken"):
        growth.run_measured([sys.executable, "-c", "raise SystemExit('broken')"])


def test_short_pairs_are_as_many_as_asked_for(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", growth.short_pairs(2300))
    rows = (tmp_path / "pairs.jsonl").read_text().splitlines()
    assert len(rows) == 2300
    assert len(set(rows)) > 2200


def test_the_figure_has_a_bar_for_every_entry(tmp_path):
    entries = [entry(Line("explicit", 4, "stock"), [couple(3, 1)]), entry(Line("scoring", 8, "plain"), [couple(2, 1)])]
    (axes,) = ratios(entries).axes
    assert sorted(bar.get_width() for bar in axes.patches) == [2, 3]
    draw(entries, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").stat().st_size > 1000
