"""Publish the model of a run on the Hugging Face Hub, in one commit.

    push(RunDirectory("runs/a"), Hub(push="end", repo_id="owner/name"))

`rmkit push` and `hub.push` in a recipe both go through `push`. huggingface_hub reads the access token, retries, and
skips files that the repository already holds; the only code here that reads the token checks that no published file
contains it.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

import rmkit
from rmkit.config.recipe import Hub
from rmkit.errors import RmkitError
from rmkit.hub.cards import model_card
from rmkit.hub.errors import error_message
from rmkit.hub.publication import (
    CARD,
    PUBLISHED,
    UPLOAD,
    Files,
    PublicModel,
    build_publication,
    public_origins,
    refuse_secrets,
)
from rmkit.runs.directory import RunDirectory


def push(
    run_dir: RunDirectory, hub: Hub, *, model: Path | None = None, content: Mapping[str, Any] | None = None
) -> str:
    """Publish the model of a run; returns the URL of its repository.

    Args:
        run_dir: a finished run, or the one that is being trained.
        hub: the repository; its visibility is set when it is created and never changed.
        model, content: the model directory and the content of run.json, where they are not in `run_dir` yet.

    Raises:
        RmkitError: if there is nothing to publish, the Hub refuses or the connection breaks. Neither the run nor the
            repository has changed then: all files go into one commit.
    """
    content = run_dir.read() if content is None else content
    hub = _pin_base(hub)
    publication = build_publication(run_dir.model if model is None else model, content, hub)
    files = publication.files | {CARD: model_card(publication, content, hub.repo_id).encode()}
    refuse_secrets(files, content["recipe"], [get_token()])
    with _push_errors(run_dir, hub):
        api = _api()
        _check_hub_ids(api, publication.base, publication.reference)
        url = str(api.create_repo(hub.repo_id, private=hub.private or None, exist_ok=True))
        changed = _commit(api, files, hub.repo_id, _commit_message(content))
    for name in publication.left_out:
        print(f"Not published: {name}")
    print(f"Published: {url}" if changed else f"Nothing has changed: {url} already holds this model.")
    return url


def check_access(run_dir: RunDirectory, hub: Hub, record: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Check before training whether the model can be published; nothing is created on the Hub until there is a model.

    Raises:
        RmkitError: if others cannot reach the base, the Hub does not answer, or the access token may not write to the
            repository or to its owner.
    """
    origins = public_origins(record, recipe, hub)
    with _push_errors(run_dir, hub, "Log in (`hf auth login`), or train without hub and publish later: "):
        api = _api()
        _check_hub_ids(api, *origins)
        user = api.whoami()
        exists = api.repo_exists(hub.repo_id)
        if exists:
            api.auth_check(hub.repo_id, write=True)
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise RmkitError(
            f"{hub.repo_id} cannot be published: the access token of {user['name']} is read-only.",
            "Create a token with write access (https://huggingface.co/settings/tokens) and run `hf auth login`.",
        )
    owner = hub.repo_id.partition("/")[0]
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if not exists and owner.lower() not in [name.lower() for name in owners]:
        raise RmkitError(
            f"hub.repo_id {hub.repo_id} cannot be created: the access token belongs to {user['name']}, who is neither "
            f"{owner} nor a member.",
            f"Start hub.repo_id with one of {', '.join(owners)}.",
        )


def _commit(api: HfApi, files: Files, repo_id: str, message: str) -> bool:
    """Make `files` the repository's rmkit files, in one commit; False if they were already."""
    before = api.model_info(repo_id)
    present = {sibling.rfilename for sibling in before.siblings or []}
    stale = sorted(name for name in present - set(files) if any(_matches(name, pattern) for pattern in PUBLISHED))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(name, is_folder=False) for name in stale
    ]
    operations += [
        CommitOperationAdd(name, str(file) if isinstance(file, Path) else file) for name, file in files.items()
    ]
    return str(api.create_commit(repo_id, operations, commit_message=message).oid) != before.sha


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) and path.count("/") == pattern.count("/")


def _pin_base(hub: Hub) -> Hub:
    """Replace the branch of `hub.base` by its current commit, as branches move; a missing repository stays as named."""
    if hub.base in (None, UPLOAD):
        return hub
    name, _, revision = str(hub.base).partition("@")
    with contextlib.suppress(Exception):  # `_check_hub_ids` reports what is wrong
        return hub.model_copy(update={"base": f"{name}@{_api().model_info(name, revision=revision or None).sha}"})
    return hub


def _check_hub_ids(api: HfApi, *origins: PublicModel | None) -> None:
    for origin in origins:
        if origin is not None and origin.hub_id is not None and not api.repo_exists(origin.hub_id):
            raise RmkitError(
                f"The Hub has no model {origin.hub_id}, from which this one was trained.",
                "If that is a local folder, push from the directory where it is found, or give its hub id with --base "
                "(hub.base).",
            )


def _commit_message(content: Mapping[str, Any]) -> str:
    type_name, steps = content["reward_model"]["reward_model"]["type"], content["training"]["steps"]
    finished = content["history"][-1]["state"] == "final"
    if finished and content.get("kept"):
        steps = content["kept"]["step"]
    return f"{type_name} reward model, " + (f"trained for {steps} steps" if finished else f"checkpoint of step {steps}")


def _api() -> HfApi:
    return HfApi(library_name="rmkit", library_version=rmkit.__version__)


@contextlib.contextmanager
def _push_errors(
    run_dir: RunDirectory, hub: Hub, remedy: str = "The run is complete; push again with: "
) -> Iterator[None]:
    options = (["--private"] if hub.private else []) + (["--base", hub.base] if hub.base else [])
    command = shlex.join(["rmkit", "push", str(run_dir.path), hub.repo_id, *options])
    try:
        yield
    except RmkitError:
        raise
    except Exception as error:  # the Hub's errors, the connection's, the disk's and malformed answers
        raise RmkitError(f"{hub.repo_id} was not published: {error_message(error)}", remedy + command) from None
