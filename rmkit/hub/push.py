"""The Hugging Face Hub: publishing the model of a run in one commit, and fetching it again.

    hub.push(RunDirectory("runs/a"), Hub(push="end", repo_id="owner/name"))

Everything that publishes goes through `push` (`rmkit push`, `hub.push` in a recipe). huggingface_hub reads the access
token, retries, and skips what the repository holds already; nothing here ever sees the token but the check that it is
in no file.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

import rmkit
from rmkit.config.recipe import Hub
from rmkit.errors import RmkitError
from rmkit.hub.cards import card
from rmkit.hub.publication import (
    BESIDE,
    CARD,
    PUBLISHED,
    RECORD,
    Files,
    PublicModel,
    origins,
    publication,
    refuse_secrets,
)
from rmkit.runs.directory import RunDirectory


def push(run: RunDirectory, hub: Hub, *, model: Path | None = None, content: Mapping[str, Any] | None = None) -> str:
    """Publish the model of a run; returns the address of its repository.

    Args:
        run: a finished run, or the one that is being trained.
        hub: the repository; its visibility is set when it is made and never changed.
        model, content: the model directory and the content of run.json, where they are not yet in `run`.

    Raises:
        RmkitError: if there is nothing to publish, the Hub refuses or the connection breaks. The run is left as it is,
            and the repository as it was: there is one commit, of all files.
    """
    content = run.read() if content is None else content
    hub = _pinned(hub)
    made = publication(run.model if model is None else model, content, hub)
    files = made.files | {CARD: card(made, content, hub.repo_id).encode()}
    refuse_secrets(files, content["recipe"], [get_token()])
    with _reported(run, hub):
        api = _api()
        _check_hub_ids(api, made.base, made.reference)
        address = str(api.create_repo(hub.repo_id, private=hub.private or None, exist_ok=True))
        changed = _commit(api, files, hub.repo_id, _message(content))
    for name in made.left_out:
        print(f"Not published: {name}")
    print(f"Published: {address}" if changed else f"Nothing has changed: {address} holds this already.")
    return address


def check_access(run: RunDirectory, hub: Hub, record: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Look before a run whether its model can be published; nothing is made on the Hub until there is a model.

    Raises:
        RmkitError: if the base has no place that others can reach, the Hub does not answer, or the access token may
            not write to the repository or to its owner.
    """
    found = origins(record, recipe, hub)
    with _reported(run, hub, "Log in (`hf auth login`), or train without hub and publish later: "):
        api = _api()
        _check_hub_ids(api, *found)
        user = api.whoami()
        exists = api.repo_exists(hub.repo_id)
        if exists:
            api.auth_check(hub.repo_id, write=True)
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise RmkitError(
            f"{hub.repo_id} cannot be published: the access token of {user['name']} may only read.",
            "Make a token that may write (https://huggingface.co/settings/tokens) and give it to `hf auth login`.",
        )
    owner = hub.repo_id.partition("/")[0]
    owners = [user["name"], *(each["name"] for each in user.get("orgs", []))]
    if not exists and owner.lower() not in [each.lower() for each in owners]:
        raise RmkitError(
            f"hub.repo_id {hub.repo_id} cannot be made: the access token is of {user['name']}, who is not {owner} and "
            "not a member.",
            f"Start hub.repo_id with one of {', '.join(owners)}.",
        )


def fetch(name: str, revision: str | None = None) -> Path | None:
    """The local folder of a repository that `push` has made; None if `name` is no such repository.

    Raises:
        RmkitError: if it is one, and cannot be fetched whole.
    """
    try:
        hf_hub_download(name, RECORD, revision=revision)
    except (OSError, HFValidationError):  # not on the Hub, not reachable, or another model: transformers will say
        return None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(PUBLISHED)))
    except (OSError, ValueError) as error:
        raise RmkitError(
            f"{name} could not be fetched: {_plain(error)}", "Check the network and the access token, and try again."
        ) from None


def _commit(api: HfApi, files: Files, repo_id: str, message: str) -> bool:
    """One commit after which the repository's files that are rmkit's are `files`; False if they were before."""
    before = api.model_info(repo_id)
    held = {each.rfilename for each in before.siblings or []}
    stale = sorted(each for each in held - set(files) if any(_matches(each, pattern) for pattern in PUBLISHED))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(each, is_folder=False) for each in stale
    ]
    operations += [
        CommitOperationAdd(name, str(file) if isinstance(file, Path) else file) for name, file in files.items()
    ]
    return str(api.create_commit(repo_id, operations, commit_message=message).oid) != before.sha


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) and path.count("/") == pattern.count("/")


def _pinned(hub: Hub) -> Hub:
    """With the commit at which `hub.base` stands now, as a branch may move; a repository that is not there stays."""
    if hub.base in (None, BESIDE):
        return hub
    name, _, revision = str(hub.base).partition("@")
    with contextlib.suppress(Exception):  # what the Hub answers is reported where it is asked again
        return hub.model_copy(update={"base": f"{name}@{_api().model_info(name, revision=revision or None).sha}"})
    return hub


def _check_hub_ids(api: HfApi, *origins: PublicModel | None) -> None:
    for each in origins:
        if each is not None and each.hub_id is not None and not api.repo_exists(each.hub_id):
            raise RmkitError(
                f"The Hub has no model {each.hub_id}, from which this one was made.",
                "Where that is a folder, push from where it is found, or say its hub id with --base (hub.base).",
            )


def _message(content: Mapping[str, Any]) -> str:
    kind, steps = content["reward_model"]["reward_model"]["type"], content["training"]["steps"]
    finished = content["history"][-1]["state"] == "final"
    return f"{kind} reward model, " + (f"trained for {steps} steps" if finished else f"checkpoint of step {steps}")


def _api() -> HfApi:
    return HfApi(library_name="rmkit", library_version=rmkit.__version__)


@contextlib.contextmanager
def _reported(run: RunDirectory, hub: Hub, remedy: str = "The run is whole; push again with: ") -> Iterator[None]:
    options = (["--private"] if hub.private else []) + (["--base", hub.base] if hub.base else [])
    command = shlex.join(["rmkit", "push", str(run.path), hub.repo_id, *options])
    try:
        yield
    except RmkitError:
        raise
    except Exception as error:  # the Hub's errors, the connection's, the disk's and malformed answers
        raise RmkitError(f"{hub.repo_id} was not published: {_plain(error)}", remedy + command) from None


def _plain(error: BaseException) -> str:
    """The first line of an error and of what caused it, without the queries of addresses, which may hold signatures."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the Hub refuses the access token (401); `hf auth login` sets another."
    if status == 403:
        return "the access token may not write there (403)."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = re.sub(r"\?\S+", "", lines[0]).rstrip(".") + "."
    if isinstance(error, LocalEntryNotFoundError) or error.__cause__ is None:
        return text
    return f"{text} {_plain(error.__cause__)}"
