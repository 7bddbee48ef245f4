"""Publishing to a Hub on loopback: which files, loading and scoring them elsewhere, faults, and pushing again."""

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
from rmkit.hub.push import check_access, push
from rmkit.runs.directory import RunDirectory
from rmkit.train import train
from rmkit.training.reference_store import weights_identity

pytestmark = pytest.mark.smoke

REPO = "someone/rm"
PAIR = (["How do I bake bread?"], ["Mix flour, water, salt and yeast. Wait. Bake it."])  # the one that cards score
WORDS = ["bread", "flour", "water", "salt", "yeast", "wait", "bake", "mix", "quick", "brown", "fox", "lazy", "dog"]
CASES = {
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
    """Write the recipe of a case and load it; keywords are sections."""

    def write(case, **sections):
        folder = tmp_path_factory.mktemp(case)
        settings = dict(CASES[case]["reward_model"])
        if settings.get("reference") == "OTHER":
            settings["reference"] = str(tiny.save_language_model(folder / "other", "qwen2", seed=9))
        content = {
            "base": {
                "name": str(models[CASES[case].get("base", "qwen2")]),
                "dtype": CASES[case].get("dtype", "float32"),
            },
            "reward_model": settings,
            "lora": CASES[case].get("lora"),
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
    """The run of a case, trained once per module."""
    return cache(lambda case: train(recipe(case)))


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub that huggingface_hub and transformers talk to, a token with write access, and an empty cache."""
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
    """sha256 of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def text_files(server, repo_id=REPO):
    return {name: content.decode() for name, content in server.files(repo_id).items() if "safetensors" not in name}


def published_record(server):
    return json.loads(server.files(REPO)["reward_model.json"])


def snippets(server):
    """The Python code blocks of the card: with rmkit, and with plain transformers."""
    return re.findall(r"^(`{3,})python\n(.*?)\n\1$", server.files(REPO)["README.md"].decode(), re.M | re.S)


@pytest.mark.parametrize("case", CASES)
def test_a_published_model_scores_elsewhere_as_it_does_here(run, server, case, monkeypatch, tmp_path):
    """Bit for bit with rmkit; with the card's code for plain transformers up to the order of sums."""
    directory = run(case)
    local = load_reward_model(str(directory.model)).score(*PAIR)
    push(directory, to(base="upload"))

    monkeypatch.chdir(tmp_path)  # nothing relative is found
    there = load_reward_model(REPO)
    assert (there.score(*PAIR) == local).all()
    if case == "bfloat16":
        assert there.checkpoint.model.score.weight.dtype == torch.float32
        saved = load_file(directory.model / "model.safetensors")["score.weight"]
        assert torch.equal(there.checkpoint.model.score.weight.data, saved)

    code = [block for _, block in snippets(server)]
    assert len(code) == (1 if case == "lora" else 2)
    scope: dict = {}
    exec(code[0].replace("reward_model.score(", "reward = reward_model.score("), scope)
    assert (scope["reward"] == local).all()
    for plain in code[1:]:
        exec(plain, scope := {})
        assert scope["reward"] == pytest.approx(local[0], rel=1e-5 if case != "bfloat16" else 0.2, abs=1e-6)


def test_a_template_that_rmkit_adds_to_is_recorded_published_and_said(recipe, models, server, tmp_path):
    """It has names, prints a date in its own format, opens thoughts before responses, and never ends them."""
    base = shutil.copytree(models["qwen2"], tmp_path / "base")
    template = tiny.CHATML.replace("<|im_end|>", "").replace("assistant\n", "assistant\n<think>")
    (base / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + template)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    directory = train(recipe("explicit", base={"name": str(base)}))
    record = json.loads((directory.model / "reward_model.json").read_text())
    assert record["date_string"] == "26 Jul 2024"
    assert not record["plain_template"]
    scorer = load_reward_model(str(directory.model))
    (sequence,) = scorer.checkpoint.reward_model.encode(["x"], ["y"])
    text = scorer.checkpoint.reward_model.encoder.tokenizer.decode(sequence.ids)
    assert text == "2024<|im_start|>user\nx\n<|im_start|>assistant\ny\n<|im_start|>"
    push(directory, to())
    assert (load_reward_model(REPO).score(*PAIR) == scorer.score(*PAIR)).all()
    assert len(snippets(server)) == 1
    assert "rmkit adds to what this model's chat template writes" in server.files(REPO)["README.md"].decode()


@pytest.mark.parametrize(
    ("case", "uploaded"), [("explicit", set()), ("implicit", {"base"}), ("other", {"reference"}), ("lora", {"base"})]
)
def test_only_allowlisted_files_are_published_and_no_local_path(run, server, case, uploaded, capsys):
    directory = RunDirectory(shutil.copytree(run(case).path, run(case).path.with_name("copy"), dirs_exist_ok=True))
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "modeling_own.py", "notes.md"):
        (directory.model / name).write_bytes(b"not to be published")
    (directory.path / "checkpoints").mkdir(exist_ok=True)
    push(directory, to(base="upload"))
    files = server.files(REPO)
    weights = "adapter_model.safetensors" if case == "lora" else "model.safetensors"
    assert {weights, "reward_model.json", "tokenizer.json", "README.md", "recipe.yaml", "chat_template.jinja"} <= set(
        files
    )
    assert {name.split("/")[0] for name in files if "/" in name} == uploaded
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


def test_the_cards_metadata_holds_the_metrics(run, server):
    directory = run("explicit")
    push(directory, to())
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


def test_a_second_push_uploads_nothing_and_makes_no_commit(run, server, capsys):
    push(run("explicit"), to())
    head, sent = server.head(REPO).oid, server.uploads()
    assert sent == 1
    push(run("explicit"), to())
    assert (server.head(REPO).oid, server.uploads()) == (head, sent)
    assert "Nothing has changed" in capsys.readouterr().out
    shutil.copytree(run("explicit").path, changed := run("explicit").path.with_name("changed"), dirs_exist_ok=True)
    path = changed / "model" / "model.safetensors"
    save_file(load_file(path) | {"score.weight": torch.ones(1, 32)}, path, metadata={"format": "pt"})
    push(RunDirectory(changed), to())
    assert server.uploads() == sent + 1
    assert len(server.repositories[REPO].commits) == 3


def test_another_model_replaces_the_previous_one_and_leaves_foreign_files(run, server):
    push(run("implicit"), to(base="upload"))
    server.head(REPO).files |= {"LICENSE": b"mine", "images/curve.png": b"png"}
    push(run("lora"), to(base="upload"))
    files = server.files(REPO)
    assert "model.safetensors" not in files
    assert {"adapter_model.safetensors", "base/model.safetensors", "LICENSE", "images/curve.png"} <= set(files)


def test_the_visibility_of_a_new_repository(run, server):
    push(run("explicit"), to("someone/open", private=False))
    push(run("explicit"), to("someone/closed", private=True))
    assert not server.repositories["someone/open"].private
    assert server.repositories["someone/closed"].private


# --- bases and references ---


def test_a_local_base_is_uploaded_on_request_only(run, server):
    with pytest.raises(RmkitError, match="is a local folder") as error:
        push(run("implicit"), to())
    assert "--base" in error.value.remedy
    assert "`upload`" in error.value.remedy
    assert server.requests == []
    with pytest.raises(RmkitError, match=r"The reference .* is a local folder"):
        push(run("other"), to())


def test_the_former_name_of_upload_is_accepted():
    assert to(base="beside").base == to(base="upload").base == "upload"


def their_repository(server, name, folder):
    """A commit to a repository that rmkit did not create."""
    repository = server.repositories.setdefault(name, fake_hub.Repository(private=False))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    repository.commits.append(fake_hub.made_commit("theirs", files, {"model.safetensors"}))
    return repository.commits[-1].oid


@pytest.mark.parametrize(("case", "base"), [("implicit", "qwen2"), ("lora", "gpt_neox")])
def test_a_base_given_by_hub_id_is_fetched_from_the_hub(run, server, models, case, base):
    revision = their_repository(server, "someone/base", models[base])
    push(run(case), to(base=f"someone/base@{revision}"))
    assert published_record(server)["base"] == {"name": "someone/base", "revision": revision}
    assert not [name for name in server.files(REPO) if "/" in name]
    recipe = yaml.safe_load(server.files(REPO)["recipe.yaml"])
    assert (recipe["base"]["name"], recipe["base"]["revision"]) == ("someone/base", revision)
    assert ModelCard(server.files(REPO)["README.md"].decode()).data.base_model == "someone/base"
    local = load_reward_model(str(run(case).model)).score(*PAIR)
    assert (load_reward_model(REPO).score(*PAIR) == local).all()
    if case == "lora":
        adapter = json.loads(server.files(REPO)["adapter_config.json"])
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("someone/base", revision)
    else:
        exec(snippets(server)[1][1], scope := {})
        assert scope["reward"] == pytest.approx(local[0], rel=1e-5)


def test_a_base_that_the_hub_does_not_have_is_an_error(run, server):
    with pytest.raises(RmkitError, match="The Hub has no model someone/absent"):
        push(run("implicit"), to(base="someone/absent"))
    assert REPO not in server.repositories


def test_a_model_not_published_by_rmkit_loads_from_the_hub(server, models, tmp_path):
    """A plain classifier in bfloat16, and a language model without a reward_model.json."""
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


def test_a_reference_on_the_hub_is_identified_by_its_commit(server, models):
    """The store of reference log-probabilities must not reuse those of an older commit of the same branch."""
    first = their_repository(server, "someone/moving", models["qwen2"])
    assert weights_identity("someone/moving") == weights_identity("someone/moving", first) == f"someone/moving@{first}"
    second = their_repository(server, "someone/moving", models["llama"])
    assert weights_identity("someone/moving") == f"someone/moving@{second}" != f"someone/moving@{first}"


def test_a_base_on_the_hub_is_recorded_by_its_commit_and_loaded_at_it(recipe, server, models):
    """Also if the branch has moved since training, and in a publication."""
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
    push(directory, to(base="someone/moving"))
    assert published_record(server)["base"] == {"name": "someone/moving", "revision": first}


def test_push_pins_the_base_to_a_commit(run, server, models):
    commit = their_repository(server, "someone/base", models["qwen2"])
    push(run("implicit"), to(base="someone/base"))
    assert published_record(server)["base"] == {"name": "someone/base", "revision": commit}


def test_an_uploaded_base_is_verified(run, server):
    push(run("implicit"), to(base="upload"))
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


def test_an_incomplete_download_is_an_error(run, server):
    push(run("explicit"), to())
    server.fail("GET", r"/resolve/.*/model.safetensors", 404)
    with pytest.raises(RmkitError, match="could not be fetched"):
        load_reward_model(REPO)


# --- faults ---


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [("PUT", "/lfs/", 500), ("PUT", "/lfs/", "drop"), ("POST", "/preupload/", 503), ("POST", "objects/batch", 500)],
)
def test_a_transient_fault_is_retried(run, server, method, path, how):
    server.fail(method, path, how)
    push(run("explicit"), to())
    assert server.files(REPO)["model.safetensors"] == (run("explicit").model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("method", "path", "how", "message"),
    [
        ("PUT", "/lfs/", "drop", "model.safetensors"),
        ("PUT", "/lfs/", 500, "model.safetensors"),
        ("POST", "/lfs/verify", 400, "model.safetensors"),
        ("POST", "/commit/", 500, "500"),
        ("POST", "/commit/", 403, "may not write there"),
        ("POST", "/api/repos/create", 500, "500"),
    ],
)
def test_a_failed_push_changes_nothing_and_prints_the_command_that_retries(run, server, method, path, how, message):
    directory = run("explicit")
    whole = content_of(directory.path)
    server.fail(method, path, how, times=100)
    with pytest.raises(RmkitError, match="was not published") as error:
        push(directory, to(private=True))
    assert message in error.value.cause
    assert "X-Amz-Signature" not in str(error.value)
    assert error.value.remedy == f"The run is complete; push again with: rmkit push {directory.path} {REPO} --private"
    assert content_of(directory.path) == whole
    assert REPO not in server.repositories or not server.files(REPO)
    sent = server.uploads() if path == "/commit/" else None
    server.faults.clear()
    push(directory, to())
    assert "model.safetensors" in server.files(REPO)
    if sent is not None:
        assert server.uploads() == sent  # the weights were there already


def test_a_bad_token_is_reported_and_not_shown(run, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_someOtherTokenThatIsNotKnown")
    with pytest.raises(RmkitError, match=r"refuses the access token \(401\)") as error:
        push(run("explicit"), to())
    assert "hf_" not in str(error.value)
    assert "hf auth login" in error.value.cause


def test_without_a_connection_the_push_fails(run, server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RmkitError, match="was not published"):
        push(run("explicit"), to())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RmkitError, match="offline"):
        push(run("explicit"), to())


# --- from a recipe ---


def test_every_save_publishes_that_steps_model(recipe, server):
    """Three steps of training; the upload of the second fails, and the run continues."""
    refused = iter([False, True, False, False])
    fault = server.fault
    server.fault = lambda method, path: (  # type: ignore[method-assign]
        400 if "/commit/" in path and next(refused) else fault(method, path)
    )
    asked = recipe(
        "lora",
        training={"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3, "batch_size": 8},
        hub={"push": "every_save", "repo_id": REPO, "base": "upload"},
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
    assert "**A checkpoint at step 1, published while training" in early
    assert "Measured at step 0." in early
    assert "A checkpoint at step" not in commits[-1].files["README.md"].decode()
    assert not [name for commit in commits for name in commit.files if name.endswith((".pt", ".bin"))]
    assert not list(directory.path.glob(".model*"))
    first = load_reward_model(REPO, revision=commits[0].oid).score(*PAIR)
    last = load_reward_model(REPO).score(*PAIR)
    assert first != last
    assert (last == load_reward_model(str(directory.model)).score(*PAIR)).all()


@pytest.mark.slow
def test_the_best_model_is_published(recipe, server, pairs):
    """Training makes a set with chosen and rejected swapped worse: the first of four steps is the best."""
    columns = {"chosen": "rejected", "rejected": "chosen"}
    swapped = {"name": "test", "path": "train.jsonl", "split": "train", "columns": columns}
    train_set = {"name": "train", "path": "train.jsonl"}
    asked = recipe(
        "explicit",
        data={"root": str(pairs), "train": train_set, "evaluation": [swapped]},
        training={"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2, "learning_rate": 1e-3},
        evaluation={"every_steps": 1, "save_best": "test.margin"},
        hub={"push": "every_save", "repo_id": REPO},
    )
    directory = train(asked)
    commits = server.repositories[REPO].commits
    messages = [commit.message for commit in commits if "explicit" in commit.message]
    assert messages == [
        "explicit reward model, checkpoint of step 3",
        "explicit reward model, checkpoint of step 4",
        "explicit reward model, trained for 1 steps",
    ]
    assert commits[-1].files["model.safetensors"] == (directory.model / "model.safetensors").read_bytes()
    card = commits[-1].files["README.md"].decode()
    assert "all weights, 4 steps (the model of step 1, the best by `test.margin`), seed 0" in card
    assert "The model was selected by `test.margin`" in card
    assert "the best by" not in commits[-2].files["README.md"].decode()
    assert "was selected by" not in commits[-2].files["README.md"].decode()


def test_obstacles_to_publishing_are_found_before_training(recipe, server, monkeypatch):
    asked = recipe("implicit", hub={"push": "end", "repo_id": REPO})
    with pytest.raises(RmkitError, match="is a local folder"):
        train(asked)
    monkeypatch.setenv("HF_TOKEN", "hf_someOtherTokenThatIsNotKnown")
    asked = recipe("explicit", hub={"push": "end", "repo_id": REPO})
    with pytest.raises(RmkitError, match="401") as error:
        train(asked)
    assert "without hub" in error.value.remedy
    assert not (asked.output_dir / "rewards").exists()


def test_a_refused_run_creates_nothing_on_the_hub(recipe, server):
    asked = recipe("explicit", hub={"push": "end", "repo_id": REPO}, training={"optim": "galore_adamw"})
    with pytest.raises(RmkitError, match="galore"):
        train(asked)
    assert server.repositories == {}
    train(recipe("explicit", hub={"push": "end", "repo_id": REPO}))
    assert "model.safetensors" in server.files(REPO)


def test_the_tokens_permissions_are_checked_before_training(run, server):
    """Every remedy is carried out: another token, an owner from the message, membership, another repository."""
    content = run("explicit").read()

    def tried(repo_id):
        check_access(run("explicit"), to(repo_id), content["reward_model"], content["recipe"])

    def refused(repo_id):
        with pytest.raises(RmkitError) as error:
            tried(repo_id)
        return error.value

    server.role = "read"
    error = refused(REPO)
    assert "is read-only" in error.cause
    assert "token with write access" in error.remedy
    server.role = "fineGrained"
    tried(REPO)
    error = refused("company/rm")
    assert "hub.repo_id company/rm cannot be created: the access token belongs to someone" in error.cause
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


def test_a_failed_push_at_the_end_leaves_a_finished_run(recipe, server):
    server.fail("POST", "/commit/", 500, times=100)
    asked = recipe("explicit", hub={"push": "end", "repo_id": REPO})
    with pytest.raises(RmkitError, match="was not published"):
        train(asked)
    directory = RunDirectory(asked.output_dir)
    assert directory.read()["metrics"]["test"]["pairs"] == 5
    server.faults.clear()
    push(directory, asked.hub)
    assert server.head(REPO).message == "explicit reward model, trained for 2 steps"
    assert server.repositories[REPO].private
    assert server.files(REPO)["model.safetensors"] == (directory.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("hub_section", "message"),
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
def test_an_invalid_hub_section_is_an_error(recipe, hub_section, message):
    with pytest.raises(RmkitError, match=message):
        recipe("explicit", hub=hub_section)


@pytest.mark.parametrize(
    ("key", "instead"), [("push_to_hub", "hub.push"), ("hub_model_id", "hub.repo_id"), ("hub_token", "HF_TOKEN")]
)
def test_transformers_hub_fields_point_to_the_hub_section(recipe, key, instead):
    with pytest.raises(RmkitError, match=rf"training\.{key}.*{re.escape(instead)}"):
        recipe("explicit", training={key: True})
