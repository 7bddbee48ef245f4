"""What recipes, models, data and the Hub say is never run, never a path and never markup; tokens are never written."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import fake_hub
import pytest
import tiny
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from rmkit import RmkitError, load_reward_model
from rmkit.config.recipe import Hub, Recipe, load_recipe
from rmkit.config.strict_yaml import load_yaml
from rmkit.evaluation.suites import load_suite
from rmkit.hub import cards
from rmkit.hub.publication import build_publication, refuse_secrets

REPOSITORY = Path(__file__).resolve().parents[1]


# --- tokens ---


@pytest.mark.smoke
def test_a_run_that_publishes_leaves_the_token_nowhere(models, tmp_path):
    """`rmkit train` and `rmkit push` as a user starts them, with HF_TOKEN: files, output and what is published."""
    rows = [{"prompt": f"Bake {n}?", "chosen": f"Mix {n} and salt.", "rejected": f"Wait {n}."} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "base": {"name": str(models["qwen2"])},
        "reward_model": {"type": "explicit"},
        "data": {
            "root": str(tmp_path),
            "train": {"name": "train", "path": "pairs.jsonl"},
            "evaluation": [{"name": "test", "path": "pairs.jsonl"}],
        },
        "training": {"num_train_epochs": 1, "batch_size": 8, "save_strategy": "epoch"},
        "hub": {"push": "end", "repo_id": "someone/rm"},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with fake_hub.serving() as server:
        environment = {
            "HF_ENDPOINT": server.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": fake_hub.TOKEN,
            "PYTHONPATH": str(REPOSITORY),
        }
        train = [str(REPOSITORY / "rmkit" / "train.py"), str(tmp_path / "recipe.yaml")]
        push = ["-m", "rmkit", "push", str(tmp_path / "run"), "someone/rm"]
        said = []
        for command in (train, push):
            done = subprocess.run(
                [sys.executable, *command], env=os.environ | environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            said.append(done.stdout + done.stderr)
        assert "Published: " in said[0]
        assert "Nothing has changed" in said[1]
        server.fail("POST", "/commit/", 500)
        failing = ["-m", "rmkit", "push", str(tmp_path / "run"), "someone/other"]
        done = subprocess.run([sys.executable, *failing], env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "  fix: "))]
        assert lines[1] == f"  fix: The run is complete; push again with: rmkit push {tmp_path / 'run'} someone/other"
        said.append(done.stdout + done.stderr)
        files = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
        assert len(files) > 10  # checkpoints too
        published = [content for repo in server.repositories for content in server.files(repo).values()]
        assert len(published) >= 6
        for content in [*files, *published, *(text.encode() for text in said)]:
            assert fake_hub.TOKEN.encode() not in content


def test_publishing_needs_no_torch():
    code = "import sys; import rmkit.hub.push; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})


def test_a_token_or_a_path_in_a_text_of_the_recipe_is_not_published(finished):
    model, content = finished
    recipe = content["recipe"]
    made = build_publication(model, content, HUB)
    refuse_secrets(made.files, recipe, ["hf_secret"])
    leaking = copy.deepcopy(content)
    leaking["recipe"]["training"]["run_name"] = "with hf_secret"
    made = build_publication(model, leaking, HUB)
    with pytest.raises(RmkitError, match=r"recipe.yaml would publish your access token") as error:
        refuse_secrets(made.files, recipe, ["hf_secret"])
    assert "hf_secret" not in str(error.value)
    leaking["recipe"]["training"]["run_name"] = f"in {recipe['output_dir']}"
    made = build_publication(model, leaking, HUB)
    with pytest.raises(RmkitError, match=r"recipe.yaml would publish a local path"):
        refuse_secrets(made.files, recipe, [])


# --- recipes ---


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/name:os.mkdir", "python/object/new:os.mkdir"])
def test_yaml_makes_no_objects(tmp_path, tag):
    made = tmp_path / "made"
    (tmp_path / "recipe.yaml").write_text(f"output_dir: !!{tag} [{made}]\n")
    with pytest.raises(RmkitError, match="is not valid YAML"):
        load_yaml(tmp_path / "recipe.yaml")
    good = {"output_dir": "x"}
    (tmp_path / "good.yaml").write_text(json.dumps(good))
    with pytest.raises(RmkitError):
        load_recipe(tmp_path / "good.yaml", [f"output_dir=!!{tag} [{made}]"])
    assert not made.exists()
    assert load_yaml(tmp_path / "good.yaml") == good


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", "a\nb", "~", ""])
def test_names_of_sets_are_no_paths(tmp_path, name):
    section = {"name": name, "path": "p"}
    content = {
        "base": {"name": "b"},
        "reward_model": {"type": "explicit"},
        "data": {"train": {"name": "train", "path": "p"}, "evaluation": [section]},
        "output_dir": "o",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    with pytest.raises(RmkitError, match="name"):
        load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "suite.yaml").write_text(json.dumps({"sets": [section]}))
    with pytest.raises(RmkitError, match="name"):
        load_suite(tmp_path / "suite.yaml")
    content["data"]["evaluation"][0]["name"] = "a_b-c.d"
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    load_recipe(tmp_path / "recipe.yaml")


def test_a_record_from_the_hub_names_no_folder_outside(models, tmp_path):
    """`./base` and `./reference` are folders of the model directory; nothing else is taken for one."""
    from rmkit.reward_models.metadata import read_metadata

    record = {"reward_model": {"type": "implicit", "reference": "./../../secret"}, "base": {"name": "./../secret"}}
    (tmp_path / "reward_model.json").write_text(json.dumps(record))
    read = read_metadata(str(tmp_path))
    assert (read.base.name, read.reward_model.reference) == ("./../secret", "./../../secret")
    record = {"reward_model": {"type": "implicit", "reference": "./reference"}, "base": {"name": "./base"}}
    (tmp_path / "reward_model.json").write_text(json.dumps(record))
    read = read_metadata(str(tmp_path))
    assert (read.base.name, read.reward_model.reference) == (str(tmp_path / "base"), str(tmp_path / "reference"))


# --- code of models ---


@pytest.fixture
def model_with_code(tmp_path):
    """A language model whose configuration and tokenizer name code that leaves a mark when it is run."""
    folder = tiny.save_language_model(tmp_path / "model", "qwen2")
    mark = tmp_path / "mark"
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        f"Path({str(mark)!r}).touch()\n"
        "class OwnConfig(Qwen2Config):\n"
        "    model_type = 'own'\n"
        "class OwnModel(Qwen2ForCausalLM):\n"
        "    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, mark


def test_a_models_own_code_runs_only_where_it_is_asked_for(model_with_code, monkeypatch, tmp_path):
    folder, mark = model_with_code
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    options = {"type": "implicit", "reference": "none", "beta": 1.0}
    with pytest.raises(RmkitError):
        load_reward_model(str(folder), **options)
    assert not mark.exists()
    load_reward_model(str(folder), **options, trust_remote_code=True)
    assert mark.exists()
    recipe = {
        "base": {"name": str(folder)},
        "reward_model": {"type": "explicit"},
        "data": {"train": {"name": "a", "path": "b"}},
        "output_dir": "o",
    }
    assert Recipe.model_validate(recipe).base.trust_remote_code is False


# --- cards ---

HUB = Hub(push="end", repo_id="someone/rm", base="beside")
HOSTILE = (
    "x`</code>``` <img src=x onerror=alert(1)> | **bold** [a](http://evil.example) \n# Title\n---\nlicense: mit\n```\n"
)
REWARD_MODELS = {
    "explicit": {"type": "explicit"},
    "mean": {"type": "explicit", "pooling": "mean"},
    "implicit": {"type": "implicit", "beta": 0.1, "reference": HOSTILE},
    "no_reference": {"type": "implicit", "beta": 0.1, "reference": "none"},
    "generative": {
        "type": "generative",
        "yes_token": HOSTILE,
        "verification_prompt": HOSTILE + '{prompt}"""{response}',
        "no_token": "No",
    },
}


@pytest.fixture
def finished(tmp_path):
    """A model directory and the content of a run.json, without weights."""
    settings = REWARD_MODELS["explicit"]
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"_name_or_path": str(tmp_path / "bases" / "base")}))
    record = {"reward_model": settings, "base": {"name": str(tmp_path / "bases" / "base"), "revision": None}}
    record |= {"adapter": False, "dtype": "float32", "autocast": False, "date_string": None, "template_hash": "0"}
    (model / "reward_model.json").write_text(json.dumps(record))
    recipe = Recipe.model_validate(
        {
            "base": {"name": record["base"]["name"]},
            "reward_model": settings,
            "data": {
                "root": str(tmp_path / "sets" / "pairs"),
                "train": {"name": "train", "path": "train.jsonl"},
                "evaluation": [{"name": "test", "path": "test.jsonl"}],
            },
            "output_dir": tmp_path / "run",
        }
    )
    metrics = {"accuracy": 0.5, "normalized_margin": None, "tie_rate": 0.0, "pairs": 2}
    data = {"fingerprint": "0", "pairs": 2, "dropped": {}, "category": None, "longer_wins": 0.5}
    content = {
        "recipe": recipe.model_dump(mode="json"),
        "reward_model": record,
        "data": {"train": copy.deepcopy(data), "test": copy.deepcopy(data)},
        "metrics": {"test": metrics},
        "train_fit": None,
        "history": [{"state": "initial", "step": 0, "sets": {}}, {"state": "final", "step": 2, "sets": {}}],
        "training": {"steps": 2},
    }
    return model, content


@pytest.mark.parametrize("kind", REWARD_MODELS)
def test_cards_take_nothing_for_markup(finished, kind):
    """Every text that a recipe, a model or data can bring, hostile; read as the Hub reads it: CommonMark with HTML."""
    model, content = finished
    record = json.loads((model / "reward_model.json").read_text())
    record |= {"reward_model": REWARD_MODELS[kind], "date_string": HOSTILE, "template_hash": HOSTILE}
    record["base"] = {"name": HOSTILE, "revision": HOSTILE}
    (model / "reward_model.json").write_text(json.dumps(record))
    content["recipe"]["reward_model"] = REWARD_MODELS[kind]
    content["recipe"]["base"] |= {"name": HOSTILE, "revision": HOSTILE, "date_string": HOSTILE}
    test = content["recipe"]["data"]["evaluation"][0]
    test |= {"path": HOSTILE, "split": HOSTILE, "subset": HOSTILE, "revision": HOSTILE, "where": {HOSTILE: HOSTILE}}
    content["data"]["test"] |= {"category": HOSTILE, "fingerprint": HOSTILE, "dropped": {HOSTILE: 1}}
    text = cards.model_card(build_publication(model, content, HUB), content, "someone/rm")

    card = ModelCard(text)
    assert "license" not in card.data.to_dict()
    assert yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))["tags"][0] == "reward-model"
    tokens = [each for block in MarkdownIt("commonmark").enable("table").parse(card.text) for each in flat(block)]
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "image", "strong_open", "hr"}
    links = {token.attrs["href"] for token in tokens if token.type == "link_open"}
    assert links == {"https://arxiv.org/abs/2507.07981"}
    headings = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    sections = ["How well it ranks", "Score with rmkit", "Score with plain transformers", "Data", "Recipe"]
    assert headings == ["rm", *sections]
    for row in table_rows(card.text):
        assert len(row) in (2, 6, 8)
    for token in tokens:
        if token.type == "fence" and token.info == "python":
            compile(token.content, "card", "exec")  # hostile texts stand in it as literals
    (recipe,) = [token.content for token in tokens if token.type == "fence" and token.info == "yaml"]
    assert yaml.safe_load(recipe)["data"]["evaluation"][0]["subset"] == HOSTILE


def flat(token):
    return [token, *(each for child in token.children or [] for each in flat(child))]


def table_rows(text):
    """The cells of every row, as CommonMark's tables have them."""
    rows, row = [], None
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            row = []
        elif token.type == "inline" and row is not None:
            row.append(token.content)
        elif token.type == "tr_close":
            rows.append(row)
            row = None
    return rows


@pytest.mark.parametrize(
    "text", [HOSTILE, "plain", "", "`", " `a` ", "a|b", "&amp; <b>", "\u202egnp.exe", "a\\", "a\\|b"]
)
def test_texts_come_out_of_markdown_as_they_went_in(text):
    printable = "".join(each if each.isprintable() else " " for each in text)
    markdown = MarkdownIt("commonmark")
    (inline,) = [each for each in markdown.parse(f"x{cards.text(text)}x") if each.type == "inline"]
    assert "".join(each.content for each in inline.children) == f"x{printable}x"
    (fence,) = [each for each in markdown.parse(str(cards.fenced(text, "yaml"))) if each.type == "fence"]
    assert fence.content.strip("\n") == text.strip("\n")
    assert eval(cards.python(text)) == text
    in_table = [row for row in table_rows(f"| a |\n|---|\n| {cards.code(text)} |") if row != ["a"]]
    (row,) = in_table
    assert len(row) == 1
