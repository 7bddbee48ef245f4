"""The sources: from fixtures in the hub's layouts, the rows that the paper's order of steps and draws gives.

What is expected is computed here from the raw rows, with torch.Generator and lists alone.
"""

from __future__ import annotations

import json

import pytest
import tiny
import torch

from rmkit.config.recipe import PreferenceSet
from rmkit.data.preferences import load_preferences
from rmkit.data.sources import find, sources, use
from rmkit.data.sources.prepare import prepare_source
from rmkit.errors import RmkitError

COLUMNS = ("prompt", "chosen", "rejected")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.tokenizer("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def count(tokenizer):
    """Tokens of a text, counted with the tokenizers library itself; the tiny tokenizer adds no special ones."""
    from tokenizers import Tokenizer

    counter = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    return lambda text: len(counter.encode(text).ids)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pandas

        pandas.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(name, output, **given):
    card = prepare_source(name, given, output, error_label="test")
    sets = {split: load_preferences(str(output), split=split).pairs for split in card["splits"]}
    return card, {split: [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] for split, pairs in sets.items()}


def conversation(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def ultrafeedback_rows(number, offset):
    rows = []
    for each in range(number):
        prompt = f"Prompt {offset + each}" + " and more" * (each % 7) + (" Translate it." if each % 5 == 0 else "")
        rows.append(
            {
                "prompt": prompt,
                "chosen": conversation(prompt, f"good {each}" * (1 + each % 4)),
                "rejected": conversation(prompt, f"bad {each}" * (1 + each % 3)),
                "score_chosen": float(each % 4),
                "score_rejected": float(each % 3),
            }
        )
    return rows


@pytest.mark.parametrize(
    ("train_file", "test_file"),
    [
        ("train_prefs.jsonl", "test_prefs.jsonl"),
        ("data/train_prefs-00000-of-00001.parquet", "data/test_prefs-00000-of-00001.parquet"),
    ],
)
def test_ultrafeedback(tmp_path, tokenizer, count, train_file, test_file):
    raw = {"train": ultrafeedback_rows(60, 0), "test": ultrafeedback_rows(40, 1000)}
    write(tmp_path / "hub" / train_file, raw["train"])
    write(tmp_path / "hub" / test_file, raw["test"])
    card, found = prepared(
        "ultrafeedback", tmp_path / "out", source=tmp_path / "hub", tokenizer=str(tokenizer),
        max_prompt=40, max_response=24, train=6, test=3,
    )  # fmt: skip

    generator = torch.Generator().manual_seed(982)
    for split, wanted in (("train", 6), ("test", 3)):
        left = [row for row in raw[split] if row["score_chosen"] > row["score_rejected"]]
        decided = len(left)
        left = [(row["prompt"], row["chosen"][1]["content"], row["rejected"][1]["content"]) for row in left]
        left = [row for row in left if count(row[0]) <= 40 and count(row[1]) <= 24 and count(row[2]) <= 24]
        short = len(left)
        left = [row for row in left if "translat" not in row[0].lower()]
        order = torch.randperm(len(left), generator=generator).tolist()
        assert found[split] == [left[each] for each in order[:wanted]]
        counts = [step["rows"][split] for step in card["steps"]]
        assert counts == [len(raw[split]), decided, short, len(left), wanted]
        assert len(raw[split]) > decided > short > len(left) > wanted  # every step does something


def rewardmath_rows():
    return [
        {
            "problem": f"Problem {each % 9}",
            "eval_solution_A": [f"step {each}.", "so A"],
            "eval_solution_B": [f"step {each}.", "thus", "B"] * (1 + each % 3),
            "chosen_position": "AB"[each // 3 % 2],
        }
        for each in range(50)
    ]


def rewardmath_pairs():
    pairs = []
    for row in rewardmath_rows():
        a, b = " ".join(row["eval_solution_A"]), " ".join(row["eval_solution_B"])
        pairs.append((row["problem"], a, b) if row["chosen_position"] == "A" else (row["problem"], b, a))
    return pairs


def test_rewardmath(tmp_path, tokenizer, count):
    source = write(tmp_path / "test.parquet", rewardmath_rows())
    card, found = prepared(
        "rewardmath", tmp_path / "out", source=source, tokenizer=str(tokenizer), max_response=40, held_out=20, train=15,
        test=8,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(982)
    pairs = rewardmath_pairs()
    order = torch.randperm(50, generator=generator).tolist()
    halves = {"train": order[:30], "test": order[30:]}
    for split, wanted in (("train", 15), ("test", 8)):
        left = [pairs[each] for each in halves[split] if all(count(text) <= 40 for text in pairs[each][1:])]
        assert len(left) < len(halves[split])
        again = torch.randperm(len(left), generator=generator).tolist()
        assert found[split] == [left[each] for each in again[:wanted]]
    train_prompts = {prompt for prompt, _, _ in found["train"]}
    assert card["overlap"]["test"]["prompt"] == sum(prompt in train_prompts for prompt, _, _ in found["test"]) > 0


def test_rewardmath_split_by_prompt_shares_no_prompt(tmp_path):
    source = write(tmp_path / "test.jsonl", rewardmath_rows())
    common = {"source": source, "tokenizer": "none", "held_out": 20, "train": 0, "test": 0}
    clean, found = prepared("rewardmath", tmp_path / "clean", split_by="prompt", **common)
    mixed, _ = prepared("rewardmath", tmp_path / "mixed", **common)
    assert clean["overlap"]["test"]["prompt"] == 0 < mixed["overlap"]["test"]["prompt"]
    assert sorted(found["train"] + found["test"]) == sorted(rewardmath_pairs())
    prompts = list(dict.fromkeys(prompt for prompt, _, _ in rewardmath_pairs()))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(982)).tolist()
    held_out = {prompts[each] for each in order[-4:]}  # nine prompts, five or six rows each: four hold 20
    assert {prompt for prompt, _, _ in found["test"]} == held_out


def test_rewardbench(tmp_path):
    subsets = ["math-prm", "hep-python", "alpacaeval-easy", "hep-rust"]
    rows = [
        {"prompt": f"p{each}", "chosen": f"c{each}", "rejected": f"r{each}", "subset": subsets[each % 4], "id": each}
        for each in range(80)
    ]
    source = write(tmp_path / "data" / "filtered-00000-of-00001.parquet", rows).parent
    for name, mine in (("rewardbench_math", ["math-prm"]), ("rewardbench_code", ["hep-python", "hep-rust"])):
        _, found = prepared(name, tmp_path / name, source=source, tokenizer="none", held_out=12, test=7)
        pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows if row["subset"] in mine]
        generator = torch.Generator().manual_seed(982)
        order = torch.randperm(len(pairs), generator=generator).tolist()
        train, test = order[:-12], order[-12:]
        again = torch.randperm(len(train), generator=generator).tolist()
        assert found["train"] == [pairs[train[each]] for each in again]  # all of them, unless told otherwise
        again = torch.randperm(12, generator=generator).tolist()
        assert found["test"] == [pairs[test[each]] for each in again[:7]]


def test_empty_texts_are_dropped_after_the_draws(tmp_path):
    rows = rewardmath_rows()
    for row in rows[::3]:
        row["eval_solution_A"] = [""]
    source = write(tmp_path / "test.jsonl", rows)
    whole = write(tmp_path / "whole" / "test.jsonl", rewardmath_rows())
    common = {"tokenizer": "none", "held_out": 20, "train": 10, "test": 5}
    card, found = prepared("rewardmath", tmp_path / "out", source=source, **common)
    _, unchanged = prepared("rewardmath", tmp_path / "other", source=whole, **common)
    assert card["steps"][-1]["step"] == "no text empty"
    assert 0 < len(found["train"]) < len(unchanged["train"])
    assert set(found["train"]) < set(unchanged["train"])


def test_the_content_of_a_card(tmp_path, tokenizer, count):
    source = write(tmp_path / "test.jsonl", rewardmath_rows())
    card, found = prepared(
        "rewardmath", tmp_path / "out", source=source, tokenizer=str(tokenizer), held_out=20, train=10, test=5
    )
    assert card == json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["name"], card["source"], card["seed"]) == ("rewardmath", str(source), 982)
    lengths = card["splits"]["train"]["lengths"]
    assert lengths["unit"] == "tokens"
    for position, column in enumerate(COLUMNS):
        counts = sorted(count(row[position]) for row in found["train"])
        assert lengths[column]["mean"] == pytest.approx(sum(counts) / 10)
        assert (lengths[column]["median"], lengths[column]["max"]) == ((counts[4] + counts[5]) / 2, counts[-1])
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "| drawn | 10 | 5 |" in readme
    again, _ = prepared(
        "rewardmath", tmp_path / "again", source=source, tokenizer=str(tokenizer), held_out=20, train=10, test=5
    )
    assert again == card
    other, _ = prepared("rewardmath", tmp_path / "seed", source=source, tokenizer="none", held_out=20, seed=1, train=10)
    assert other["splits"]["train"]["fingerprint"] != card["splits"]["train"]["fingerprint"]


def test_a_card_and_a_loaded_set_have_one_fingerprint(tmp_path):
    card, _ = prepared("hamiltonian", tmp_path / "graphs", vertices=5, train=30, test=10)
    for split in ("train", "test"):
        loaded = load_preferences(str(tmp_path / "graphs"), split=split)
        assert card["splits"][split]["fingerprint"] == loaded.fingerprint
    assert card["splits"]["train"]["fingerprint"] != card["splits"]["test"]["fingerprint"]


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ultrafeedbak", {}, "Did you mean ultrafeedback"),
        ("rewardmath", {"sede": 1}, "sede is not a known key. Did you mean seed"),
        ("rewardmath", {"source": "nothing/here"}, "nothing/here does not exist"),
        ("rewardmath", {"tokenizer": "no/such-tokenizer"}, "The tokenizer no/such-tokenizer"),
        ("rewardmath", {"held_out": 50}, "50 rows, of which held_out=50"),
        ("rewardmath", {"split_by": "day"}, "split_by"),
        ("rewardmath", {"train": -1}, "train"),
        ("ultrafeedback", {}, "no column prompt; it has problem"),
        ("rewardbench_math", {}, "no column prompt; it has problem"),
        ("hamiltonian", {"vertices": 2}, "vertices"),
        ("hamiltonian", {"vertices": 3}, "are complete"),
        ("hamiltonian", {"edge_probability": 1.5}, "edge_probability"),
        ("hamiltonian", {"edge_probability": 1}, "are complete"),
        ("hamiltonian", {"vertices": 4, "edge_probability": 0.999999}, "are complete"),
    ],
)
def test_bad_input_is_an_error_and_leaves_nothing(tmp_path, name, given, message):
    source = write(tmp_path / "hub" / "test.jsonl", rewardmath_rows())
    defaults = {} if name == "hamiltonian" else {"source": source, "held_out": 20}
    if name == "ultrafeedback":
        defaults = {"source": source}
    with pytest.raises(RmkitError) as caught:
        prepare_source(name, defaults | given, tmp_path / "out", error_label="test")
    assert message in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["hub"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "text"}], "row 0: chosen holds 'text', not a question and an answer"),
        ([{"chosen": [{"role": "user", "content": "x"}]}], "row 0: chosen holds"),
    ],
)
def test_ultrafeedback_rows_with_another_layout(tmp_path, rows, message):
    rows = [ultrafeedback_rows(2, 0)[1] | {"score_chosen": 2.0} | row for row in rows]
    for split in ("train", "test"):
        write(tmp_path / "hub" / f"{split}_prefs.jsonl", rows)
    with pytest.raises(RmkitError, match=message):
        prepare_source(
            "ultrafeedback", {"source": tmp_path / "hub", "tokenizer": "none"}, tmp_path / "out", error_label="test"
        )


def test_one_file_for_two_splits_is_refused(tmp_path):
    source = write(tmp_path / "train_prefs.jsonl", ultrafeedback_rows(9, 0))
    with pytest.raises(RmkitError, match="one file, but the splits test_prefs and train_prefs are needed"):
        prepare_source("ultrafeedback", {"source": source, "tokenizer": "none"}, tmp_path / "out", error_label="test")


def test_a_subset_without_rows(tmp_path):
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "subset": "hep-go"}
    source = write(tmp_path / "filtered.jsonl", [row] * 3)
    with pytest.raises(RmkitError, match=r"No row is of the subset math-prm; the subsets are hep-go"):
        prepare_source("rewardbench_math", {"source": source}, tmp_path / "out", error_label="test")


def test_nothing_is_replaced_without_overwrite(tmp_path):
    options = {"train": 5, "test": 5}
    prepare_source("hamiltonian", options, tmp_path / "set", error_label="test")
    with pytest.raises(RmkitError, match="holds a prepared set"):
        prepare_source("hamiltonian", options, tmp_path / "set", error_label="test")
    card = prepare_source("hamiltonian", options | {"seed": 1}, tmp_path / "set", error_label="test", overwrite=True)
    assert card["seed"] == json.loads((tmp_path / "set" / "card.json").read_text())["seed"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RmkitError, match="is not a prepared set"):
        prepare_source("hamiltonian", options, tmp_path / "mine", error_label="test", overwrite=True)


def test_every_source_is_discovered():
    assert set(sources()) >= {
        "ultrafeedback", "rewardmath", "rewardbench_math", "rewardbench_code", "persona", "hamiltonian",
        "released/ultrafeedback_french",
    }  # fmt: skip
    for name in sources():
        assert find(name).name == name
        assert find(name).options.model_config["extra"] == "forbid"


# --- first use -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def graphs(**more):
    return PreferenceSet(name="graphs", source={"name": "hamiltonian", "train": 4, "test": 3} | more)


@pytest.mark.parametrize("root", [None, "root"])
def test_a_source_is_prepared_once_per_options(tmp_path, cache, monkeypatch, root):
    root = tmp_path / root if root else None
    made = []
    monkeypatch.setattr(
        use, "prepare_source", lambda *given, **more: (made.append(given[0]), prepare_source(*given, **more))
    )
    first = use.load_set(graphs(), root=root)
    assert (len(first), made) == (3, ["hamiltonian"])
    assert use.load_set(graphs(), root=root).fingerprint == first.fingerprint
    assert made == ["hamiltonian"]
    assert use.load_set(graphs(seed=5), root=root).fingerprint != first.fingerprint
    assert len(made) == 2
    folders = [each for each in (root or cache / "data").iterdir() if each.is_dir()]
    assert len(folders) == 2
    assert all(each.name.startswith("hamiltonian-") for each in folders)


def test_a_source_with_a_path_is_prepared_there_once(tmp_path, cache):
    there = graphs().model_copy(update={"path": "graphs"})
    assert len(use.load_set(there, root=tmp_path)) == 3
    assert (tmp_path / "graphs" / "card.json").exists()
    other = graphs(vertices=6).model_copy(update={"path": "graphs"})
    with pytest.raises(RmkitError, match="was prepared with vertices 10, not 6"):
        use.load_set(other, root=tmp_path)


def test_the_source_of_a_recipe_is_validated():
    with pytest.raises(RmkitError, match="the source hamiltonian of graphs: vertice is not a known key"):
        use.load_set(graphs(vertice=6), root=None)
    with pytest.raises(ValueError, match="give a path or a source"):
        PreferenceSet(name="nowhere")
    assert PreferenceSet(name="uf", source="released/ultrafeedback").source.name == "released/ultrafeedback"
