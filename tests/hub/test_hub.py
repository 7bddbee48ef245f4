"""Publishing on a Hub on loopback: what is published, that it loads and scores elsewhere, faults, and pushing again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from functools import cache

import fake_hub
import numpy as np
import pytest
import tiny
import torch
import yaml
from huggingface_hub import ModelCard, constants, utils
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils.hub import hf_api

from rmkit import RmkitError, load_reward_model
from rmkit.config.recipe import Hub, load_recipe
from rmkit.hub import push as hub
from rmkit.runs.directory import RunDirectory
from rmkit.train import train
from rmkit.training.reference_store import weights_identity

pytestmark = pytest.mark.smoke

REPO = "someone/rm"
PAIR = (["How do I bake bread?"], ["Mix flour, water, salt and yeast. Wait. Bake it."])  # the one that cards score
WORDS = ["bread", "flour", "water", "salt", "yeast", "wait", "bake", "mix", "quick", "brown", "fox", "lazy", "dog"]
KINDS = {
    "explicit": {"reward_model": {"type": "explicit"}},
    "bfloat16": {"reward_model": {"type": "explicit"}, "dtype": "bfloat16"},
    "implicit": {"reward_model": {"type": "implicit", "beta": 0.1}},
    "other": {"reward_model": {"type": "implicit", "beta": 0.1, "reference": "OTHER"}},
    "generative": {
        "reward_model": {"type": "generative", "verification_prompt": "{prompt}\n```\n{response}\n(Yes/No)?"}
    },
    "lora": {"reward_model": {"type": "implicit", "beta": 0.1}, "base": "gpt_neox", "lora": {"r": 4}},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    draw = np.random.default_rng(0)

    def text():
        return " ".join(draw.choice(WORDS, size=draw.integers(1, 8)))

    for name, number in (("train", 8), ("test", 5)):
        rows = [{"prompt": text(), "chosen": text() + ".", "rejected": text() + "?"} for _ in range(number)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def recipe(models, pairs, tmp_path_factory):
    """Write a recipe of a kind and read it; keywords are sections."""

    def write(kind, **sections):
        folder = tmp_path_factory.mktemp(kind)
        settings = dict(KINDS[kind]["reward_model"])
        if settings.get("reference") == "OTHER":
            settings["reference"] = str(tiny.save_language_model(folder / "other", "qwen2", seed=9))
        content = {
            "base": {
                "name": str(models[KINDS[kind].get("base", "qwen2")]),
                "dtype": KINDS[kind].get("dtype", "float32"),
            },
            "reward_model": settings,
            "lora": KINDS[kind].get("lora"),
            "data": {
                "root": str(pairs),
                "train": {"name": "train", "path": "train.jsonl"},
                "evaluation": [{"name": "test", "path": "test.jsonl", "category": "in-distribution"}],
            },
            "training": {"num_train_epochs": 1, "learning_rate": 1e-2, "batch_size": 4} | sections.pop("training", {}),
            "output_dir": str(folder / "run"),
        } | sections
        (folder / "recipe.yaml").write_text(json.dumps(content))
        return load_recipe(folder / "recipe.yaml")

    return write


@pytest.fixture(scope="module")
def run(recipe):
    """The run of a kind, trained once."""
    return cache(lambda kind: train(recipe(kind)))


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub that huggingface_hub and transformers talk to, with a token that may write, and an empty cache."""
    with fake_hub.serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(utils._http.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        monkeypatch.setattr(hf_api(), "endpoint", server.address)  # transformers keeps one
        yield server


def to(repo_id=REPO, **options):
    return Hub(push="end", repo_id=repo_id, **options)


def content_of(folder):
    """Every file below a folder by its sha256."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def text_files(server, repo_id=REPO):
    return {name: content.decode() for name, content in server.files(repo_id).items() if "safetensors" not in name}


def published_record(server):
    return json.loads(server.files(REPO)["reward_model.json"])


def snippets(server):
    """The blocks of Python in the card: with rmkit, and with plain transformers."""
    return re.findall(r"^(`{3,})python\n(.*?)\n\1$", server.files(REPO)["README.md"].decode(), re.M | re.S)


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_model_scores_elsewhere_as_it_does_here(run, server, kind, monkeypatch, tmp_path):
    """With rmkit to the bit; with plain transformers, by the code in the card, up to the order of sums."""
    directory = run(kind)
    local = load_reward_model(str(directory.model)).score(*PAIR)
    hub.push(directory, to(base="beside"))

    monkeypatch.chdir(tmp_path)  # nothing relative is found
    there = load_reward_model(REPO)
    assert (there.score(*PAIR) == local).all()
    if kind == "bfloat16":
        assert there.checkpoint.model.score.weight.dtype == torch.float32
        saved = load_file(directory.model / "model.safetensors")["score.weight"]
        assert torch.equal(there.checkpoint.model.score.weight.data, saved)

    code = [block for _, block in snippets(server)]
    assert len(code) == (1 if kind == "lora" else 2)
    said: dict = {}
    exec(code[0].replace("reward_model.score(", "reward = reward_model.score("), said)
    assert (said["reward"] == local).all()
    for plain in code[1:]:
        exec(plain, said := {})
        assert said["reward"] == pytest.approx(local[0], rel=1e-5 if kind != "bfloat16" else 0.2, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "along"), [("explicit", set()), ("implicit", {"base"}), ("other", {"reference"}), ("lora", {"base"})]
)
def test_only_what_is_meant_to_be_published_is_and_nothing_names_this_machine(run, server, kind, along, capsys):
    directory = RunDirectory(shutil.copytree(run(kind).path, run(kind).path.with_name("copy"), dirs_exist_ok=True))
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "modeling_own.py", "notes.md"):
        (directory.model / name).write_bytes(b"not to be published")
    (directory.path / "checkpoints").mkdir(exist_ok=True)
    hub.push(directory, to(base="beside"))
    files = server.files(REPO)
    weights = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    assert {weights, "reward_model.json", "tokenizer.json", "README.md", "recipe.yaml", "chat_template.jinja"} <= set(
        files
    )
    assert {name.split("/")[0] for name in files if "/" in name} == along
    assert not [name for name in files if name.endswith((".bin", ".pt", ".py", "notes.md"))]
    assert "Not published: training_args.bin" in capsys.readouterr().out
    recorded = directory.read()["recipe"]
    for name, text in text_files(server).items():
        for path in (
            str(directory.path.parent),
            recorded["base"]["name"],
            recorded["data"]["root"],
            "local_files_only",
        ):
            assert path not in text, name
        assert fake_hub.TOKEN not in text
    assert yaml.safe_load(files["recipe.yaml"])["hub"] is None


def test_the_card_says_what_was_measured_as_metadata_too(run, server):
    directory = run("explicit")
    hub.push(directory, to())
    record = directory.read()
    card = ModelCard(server.files(REPO)["README.md"].decode())
    accuracy, margin = card.data.eval_results
    assert accuracy.metric_value == round(record["metrics"]["test"]["accuracy"], 4)
    assert margin.metric_value == round(record["metrics"]["test"]["normalized_margin"], 4)
    assert accuracy.dataset_args == {"pairs": 5, "sha256": record["data"]["test"]["fingerprint"]}
    assert record["data"]["train"]["fingerprint"] in card.text
    row = next(line for line in card.text.splitlines() if line.startswith("| `test` | in"))
    assert [cell.strip() for cell in row.split("|")[3:6]] == ["5", *(f"{each:.3f}" for each in accuracies(record))]


def accuracies(record):
    return record["metrics"]["test"]["accuracy"], record["history"][0]["sets"]["test"]["accuracy"]


def test_a_second_push_sends_nothing_and_makes_no_commit(run, server, capsys):
    hub.push(run("explicit"), to())
    head, sent = server.head(REPO).oid, server.uploads()
    assert sent == 1
    hub.push(run("explicit"), to())
    assert (server.head(REPO).oid, server.uploads()) == (head, sent)
    assert "Nothing has changed" in capsys.readouterr().out
    shutil.copytree(run("explicit").path, changed := run("explicit").path.with_name("changed"), dirs_exist_ok=True)
    path = changed / "model" / "model.safetensors"
    save_file(load_file(path) | {"score.weight": torch.ones(1, 32)}, path, metadata={"format": "pt"})
    hub.push(RunDirectory(changed), to())
    assert server.uploads() == sent + 1
    assert len(server.repositories[REPO].commits) == 3


def test_another_model_replaces_the_one_before_and_leaves_what_is_not_rmkits(run, server):
    hub.push(run("implicit"), to(base="beside"))
    server.head(REPO).files |= {"LICENSE": b"mine", "images/curve.png": b"png"}
    hub.push(run("lora"), to(base="beside"))
    files = server.files(REPO)
    assert "model.safetensors" not in files
    assert {"adapter_model.safetensors", "base/model.safetensors", "LICENSE", "images/curve.png"} <= set(files)


def test_a_new_repository_is_as_private_as_asked(run, server):
    hub.push(run("explicit"), to("someone/open", private=False))
    hub.push(run("explicit"), to("someone/closed", private=True))
    assert not server.repositories["someone/open"].private
    assert server.repositories["someone/closed"].private


# --- bases and references ---


def test_a_local_base_that_others_need_is_not_uploaded_unasked(run, server):
    with pytest.raises(RmkitError, match="is a folder of this machine") as error:
        hub.push(run("implicit"), to())
    assert "--base" in error.value.remedy
    assert "`beside`" in error.value.remedy
    assert server.requests == []
    with pytest.raises(RmkitError, match=r"The reference .* is a folder of this machine"):
        hub.push(run("other"), to())


def their_repository(server, name, folder):
    """A commit to a repository that rmkit has not made."""
    repository = server.repositories.setdefault(name, fake_hub.Repository(private=False))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    repository.commits.append(fake_hub.made_commit("theirs", files, {"model.safetensors"}))
    return repository.commits[-1].oid


@pytest.mark.parametrize(("kind", "base"), [("implicit", "qwen2"), ("lora", "gpt_neox")])
def test_a_base_named_by_its_hub_id_is_fetched_from_there(run, server, models, kind, base):
    revision = their_repository(server, "someone/base", models[base])
    hub.push(run(kind), to(base=f"someone/base@{revision}"))
    assert published_record(server)["base"] == {"name": "someone/base", "revision": revision}
    assert not [name for name in server.files(REPO) if "/" in name]
    recipe = yaml.safe_load(server.files(REPO)["recipe.yaml"])
    assert (recipe["base"]["name"], recipe["base"]["revision"]) == ("someone/base", revision)
    assert ModelCard(server.files(REPO)["README.md"].decode()).data.base_model == "someone/base"
    local = load_reward_model(str(run(kind).model)).score(*PAIR)
    assert (load_reward_model(REPO).score(*PAIR) == local).all()
    if kind == "lora":
        adapter = json.loads(server.files(REPO)["adapter_config.json"])
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("someone/base", revision)
    else:
        exec(snippets(server)[1][1], said := {})
        assert said["reward"] == pytest.approx(local[0], rel=1e-5)


def test_a_base_that_the_hub_does_not_have_is_an_error(run, server):
    with pytest.raises(RmkitError, match="The Hub has no model someone/absent"):
        hub.push(run("implicit"), to(base="someone/absent"))
    assert REPO not in server.repositories


def test_a_model_of_another_maker_still_loads_from_the_hub(server, models, tmp_path):
    """A plain classifier in bfloat16, and a language model that says nothing of how it rewards."""
    torch.manual_seed(0)
    folder = tmp_path / "classifier"
    shutil.copytree(models["qwen2"], folder)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    their_repository(server, "someone/classifier", folder)
    their_repository(server, "someone/lm", models["qwen2"])
    expected = load_reward_model(str(folder), dtype="bfloat16").score(*PAIR)
    there = load_reward_model("someone/classifier", dtype="bfloat16")
    assert (there.score(*PAIR) == expected).all()
    head = load_file(folder / "model.safetensors")["score.weight"]
    assert torch.equal(there.checkpoint.model.score.weight.data, head)  # float32, as it was saved
    with pytest.raises(RmkitError, match="is a language model and has no"):
        load_reward_model("someone/lm")
    AutoModelForCausalLM.from_pretrained("someone/lm")
    with pytest.raises(RmkitError, match="someone/absent"):
        load_reward_model("someone/absent")


def test_a_reference_on_the_hub_is_told_by_its_commit(server, models):
    """The store of reference log-probabilities must not go on with those of an older commit of the same branch."""
    first = their_repository(server, "someone/moving", models["qwen2"])
    assert weights_identity("someone/moving") == weights_identity("someone/moving", first) == f"someone/moving@{first}"
    second = their_repository(server, "someone/moving", models["llama"])
    assert weights_identity("someone/moving") == f"someone/moving@{second}" != f"someone/moving@{first}"


def test_a_base_on_the_hub_is_recorded_by_its_commit_and_loaded_at_it(recipe, server, models):
    """Also where a branch has moved on since training, and in a publication."""
    first = their_repository(server, "someone/moving", models["qwen2"])
    directory = train(recipe("implicit", base={"name": "someone/moving", "revision": "main"}))
    recorded = json.loads((directory.model / "reward_model.json").read_text())["base"]
    assert (recorded["name"], recorded["revision"]) == ("someone/moving", first)
    expected = load_reward_model(str(directory.model)).score(*PAIR)
    other = tiny.save_language_model(directory.path.parent / "moved", "qwen2", seed=5)
    second = their_repository(server, "someone/moving", other)
    assert (load_reward_model(str(directory.model)).score(*PAIR) == expected).all()
    with pytest.raises(RmkitError, match=rf"is not the base .* Changed: commit {second[:12]}, not {first[:12]}"):
        load_reward_model(str(directory.model), base="someone/moving")
    there = load_reward_model(str(directory.model), base=f"someone/moving@{first}")
    assert (there.score(*PAIR) == expected).all()
    local = load_reward_model(str(directory.model), base=str(models["qwen2"]))
    assert (local.score(*PAIR) == expected).all()
    assert "could not be compared" in " ".join(local.checkpoint.notes)
    hub.push(directory, to(base="someone/moving"))
    assert published_record(server)["base"] == {"name": "someone/moving", "revision": first}


def test_a_publication_names_the_commit_of_the_base_that_push_is_told(run, server, models):
    commit = their_repository(server, "someone/base", models["qwen2"])
    hub.push(run("implicit"), to(base="someone/base"))
    assert published_record(server)["base"] == {"name": "someone/base", "revision": commit}


def test_a_base_beside_a_publication_is_verified(run, server):
    hub.push(run("implicit"), to(base="beside"))
    record = published_record(server)
    assert record["base"]["name"] == "./base"
    assert set(record["base"]["files"]) == {"config.json", "model.safetensors"}
    load_reward_model(REPO)
    commit = server.repositories[REPO].commits[-1]
    commit.files["base/config.json"] = json.dumps(
        json.loads(commit.files["base/config.json"]) | {"rms_norm_eps": 0.5}
    ).encode()
    shutil.rmtree(constants.HF_HUB_CACHE)
    with pytest.raises(RmkitError, match=r"is not the base .* Changed: config.json\."):
        load_reward_model(REPO)


def test_a_model_that_cannot_be_fetched_whole_is_an_error(run, server):
    hub.push(run("explicit"), to())
    server.fail("GET", r"/resolve/.*/model.safetensors", 404)
    with pytest.raises(RmkitError, match="could not be fetched"):
        load_reward_model(REPO)


# --- faults ---


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [("PUT", "/lfs/", 500), ("PUT", "/lfs/", "drop"), ("POST", "/preupload/", 503), ("POST", "objects/batch", 500)],
)
def test_a_passing_fault_is_got_over(run, server, method, path, how):
    server.fail(method, path, how)
    hub.push(run("explicit"), to())
    assert server.files(REPO)["model.safetensors"] == (run("explicit").model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("method", "path", "how", "said"),
    [
        ("PUT", "/lfs/", "drop", "model.safetensors"),
        ("PUT", "/lfs/", 500, "model.safetensors"),
        ("POST", "/lfs/verify", 400, "model.safetensors"),
        ("POST", "/commit/", 500, "500"),
        ("POST", "/commit/", 403, "may not write there"),
        ("POST", "/api/repos/create", 500, "500"),
    ],
)
def test_a_push_that_fails_leaves_all_as_it_was_and_says_how_to_push_again(run, server, method, path, how, said):
    directory = run("explicit")
    whole = content_of(directory.path)
    server.fail(method, path, how, times=100)
    with pytest.raises(RmkitError, match="was not published") as error:
        hub.push(directory, to(private=True))
    assert said in error.value.cause
    assert "X-Amz-Signature" not in str(error.value)
    assert error.value.remedy == f"The run is whole; push again with: rmkit push {directory.path} {REPO} --private"
    assert content_of(directory.path) == whole
    assert REPO not in server.repositories or not server.files(REPO)
    sent = server.uploads() if path == "/commit/" else None
    server.faults.clear()
    hub.push(directory, to())
    assert "model.safetensors" in server.files(REPO)
    if sent is not None:
        assert server.uploads() == sent  # the weights were there already


def test_a_bad_token_is_said_and_not_shown(run, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_someOtherTokenThatIsNotKnown")
    with pytest.raises(RmkitError, match=r"refuses the access token \(401\)") as error:
        hub.push(run("explicit"), to())
    assert "hf_" not in str(error.value)
    assert "hf auth login" in error.value.cause


def test_without_a_connection_the_run_is_left_whole(run, server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RmkitError, match="was not published"):
        hub.push(run("explicit"), to())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RmkitError, match="offline"):
        hub.push(run("explicit"), to())


# --- from a recipe ---


def test_every_save_publishes_the_model_of_that_step(recipe, server):
    """Three steps of training; the save of the second is refused, which the run gets over."""
    refused = iter([False, True, False, False])
    fault = server.fault
    server.fault = lambda method, path: (  # type: ignore[method-assign]
        400 if "/commit/" in path and next(refused) else fault(method, path)
    )
    asked = recipe(
        "lora",
        training={"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3, "batch_size": 8},
        hub={"push": "every_save", "repo_id": REPO, "base": "beside"},
    )
    directory = train(asked)
    commits = server.repositories[REPO].commits[1:]
    assert [commit.message for commit in commits] == [
        "implicit reward model, checkpoint of step 1",
        "implicit reward model, checkpoint of step 3",
        "implicit reward model, trained for 3 steps",
    ]
    name = "adapter_model.safetensors"
    assert commits[0].files[name] != commits[1].files[name]
    assert commits[-1].files[name] == (directory.model / name).read_bytes()
    early = commits[0].files["README.md"].decode()
    assert "**A checkpoint, of step 1 of a run that was going on" in early
    assert "Measured at step 0." in early
    assert "checkpoint, of step" not in commits[-1].files["README.md"].decode()
    assert not [name for commit in commits for name in commit.files if name.endswith((".pt", ".bin"))]
    assert not list(directory.path.glob(".model*"))
    first = load_reward_model(REPO, revision=commits[0].oid).score(*PAIR)
    last = load_reward_model(REPO).score(*PAIR)
    assert first != last
    assert (last == load_reward_model(str(directory.model)).score(*PAIR)).all()


def test_what_would_keep_a_model_from_being_published_is_known_before_training(recipe, server, monkeypatch):
    asked = recipe("implicit", hub={"push": "end", "repo_id": REPO})
    with pytest.raises(RmkitError, match="is a folder of this machine"):
        train(asked)
    monkeypatch.setenv("HF_TOKEN", "hf_someOtherTokenThatIsNotKnown")
    asked = recipe("explicit", hub={"push": "end", "repo_id": REPO})
    with pytest.raises(RmkitError, match="401") as error:
        train(asked)
    assert "without hub" in error.value.remedy
    assert not (asked.output_dir / "rewards").exists()


def test_nothing_is_made_on_the_hub_for_a_run_that_is_refused(recipe, server):
    asked = recipe("explicit", hub={"push": "end", "repo_id": REPO}, training={"optim": "galore_adamw"})
    with pytest.raises(RmkitError, match="galore"):
        train(asked)
    assert server.repositories == {}
    train(recipe("explicit", hub={"push": "end", "repo_id": REPO}))
    assert "model.safetensors" in server.files(REPO)


def test_what_the_token_may_do_is_known_before_training(run, server):
    """Each remedy is carried out: another token, an owner that the message names, membership, another repository."""
    content = run("explicit").read()

    def tried(repo_id):
        hub.check_access(run("explicit"), to(repo_id), content["reward_model"], content["recipe"])

    def refused(repo_id):
        with pytest.raises(RmkitError) as error:
            tried(repo_id)
        return error.value

    server.role = "read"
    error = refused(REPO)
    assert "may only read" in error.cause
    assert "token that may write" in error.remedy
    server.role = "fineGrained"
    tried(REPO)
    error = refused("company/rm")
    assert "hub.repo_id company/rm cannot be made: the access token is of someone" in error.cause
    assert error.remedy == "Start hub.repo_id with one of someone."
    tried("someone/rm")
    server.organizations = ["company"]
    tried("Company/rm")
    server.repositories["other/open"] = fake_hub.Repository(private=False)
    server.repositories["other/open"].commits.append(fake_hub.made_commit("theirs", {}, set()))
    server.closed = {"other/open"}
    assert "may not write there (403)" in refused("other/open").cause
    server.closed = set()
    tried("other/open")
    assert server.repositories.keys() == {"other/open"}


def test_a_push_that_fails_at_the_end_leaves_a_finished_run(recipe, server):
    server.fail("POST", "/commit/", 500, times=100)
    asked = recipe("explicit", hub={"push": "end", "repo_id": REPO})
    with pytest.raises(RmkitError, match="was not published"):
        train(asked)
    directory = RunDirectory(asked.output_dir)
    assert directory.read()["metrics"]["test"]["pairs"] == 5
    server.faults.clear()
    hub.push(directory, asked.hub)
    assert server.head(REPO).message == "explicit reward model, trained for 2 steps"
    assert server.repositories[REPO].private
    assert server.files(REPO)["model.safetensors"] == (directory.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("hub_section", "said"),
    [
        ({"push": "every_save", "repo_id": REPO}, "save_strategy"),
        ({"push": "end", "repo_id": "no-owner"}, "owner/name"),
        ({"push": "end", "repo_id": "../up"}, "owner/name"),
        ({"push": "end", "repo_id": "a/b/c"}, "owner/name"),
        ({"push": "sometimes", "repo_id": REPO}, "hub.push"),
        ({"push": "end"}, "hub.repo_id is missing"),
        ({"push": "end", "repo_id": REPO, "token": "hf_x"}, "hub.token is not a known key"),
        ({"push": "end", "repo_id": REPO, "base": "/models/base"}, "neither a hub id"),
    ],
)
def test_a_hub_section_that_cannot_be_is_an_error(recipe, hub_section, said):
    with pytest.raises(RmkitError, match=said):
        recipe("explicit", hub=hub_section)


@pytest.mark.parametrize(
    ("key", "instead"), [("push_to_hub", "hub.push"), ("hub_model_id", "hub.repo_id"), ("hub_token", "HF_TOKEN")]
)
def test_the_fields_of_transformers_lead_to_the_hub_section(recipe, key, instead):
    with pytest.raises(RmkitError, match=rf"training\.{key}.*{re.escape(instead)}"):
        recipe("explicit", training={key: True})
