"""A small Hugging Face Hub on loopback that speaks what huggingface_hub asks of it, and fails where it is told to.

Repositories are lists of commits; files are git blobs or, for safetensors, LFS objects, which are uploaded apart. Only
the right token may write, or read what is private.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub import ModelCard

TOKEN = "hf_tokenOfTheFakeHub0123456789abcdef"


@dataclass
class Commit:
    """What a repository held after a commit."""

    oid: str
    message: str
    files: dict[str, bytes]
    large: set[str]


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((each for each in self.commits if each.oid == revision), None)


@dataclass
class FakeHub:
    """The server's state.

    Attributes:
        requests: method and path of every request.
        faults: (method, pattern of the path, what happens, how often): a status code, or `drop` for a connection that
            breaks when a part of the body has been read.
        objects: LFS objects by sha256.
        role, organizations: of the token, and of the user `someone` whose token it is.
        closed: repositories that the user may read only.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[list[Any]] = field(default_factory=list)
    role: str = "write"
    organizations: list[str] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)

    def fail(self, method: str, pattern: str, how: int | str, times: int = 1) -> None:
        self.faults.append([method, re.compile(pattern), how, times])

    def fault(self, method: str, path: str) -> int | str | None:
        for each in self.faults:
            if each[3] > 0 and each[0] == method and each[1].search(path):
                each[3] -= 1
                return each[2]
        return None

    def head(self, repo_id: str) -> Commit:
        return self.repositories[repo_id].commits[-1]

    def files(self, repo_id: str) -> dict[str, bytes]:
        """The files of a repository as it is now, those that the Hub puts there excepted."""
        return {name: content for name, content in self.head(repo_id).files.items() if name != ".gitattributes"}

    def uploads(self) -> int:
        return sum(method == "PUT" for method, _ in self.requests)


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that runs inside the block."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.hub.fault(self.command, path)
        if fault == "drop":
            self.rfile.read(min(length, 100))
            self.close_connection = True
            self.connection.close()
            return
        self.body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        if isinstance(fault, int):
            return self._error(fault, f"told to answer {fault}")
        name = r"(?P<repo>[\w.-]+/[\w.-]+)"
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("GET", "/api/whoami-v2", self._whoami),
            ("GET", f"/api/models/{name}/auth-check/write", self._auth_check),
            ("POST", "/api/repos/create", self._create),
            ("POST", "/api/validate-yaml", self._validate),
            ("POST", f"/api/models/{name}/preupload/main", self._preupload),
            ("POST", f"/{name}.git/info/lfs/objects/batch", self._batch),
            ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", self._put),
            ("POST", "/lfs/verify", self._verify),
            ("POST", f"/api/models/{name}/commit/main", self._commit),
            ("GET", f"/api/models/{name}(/revision/(?P<revision>[^/]+))?", self._info),
            ("GET", f"/api/models/{name}/tree/(?P<revision>[^/]+)", self._tree),
            ("GET HEAD", f"/{name}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self._resolve),
        ]
        for methods, pattern, answer in routes:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                return answer(**match.groupdict())
        return self._error(404, f"{self.command} {path} is not served")

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # --- access ---

    def _whoami(self) -> None:
        if not self._may_write():
            return
        organizations = [{"name": each, "roleInOrg": "write"} for each in self.hub.organizations]
        token = {"displayName": "a token", "role": self.hub.role}
        self._json({"type": "user", "name": "someone", "orgs": organizations, "auth": {"accessToken": token}})

    def _auth_check(self, repo: str) -> None:
        if self._readable(repo, "main") is not None:
            self._error(403, "Forbidden") if repo in self.hub.closed else self._json({})

    # --- writing ---

    def _create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self.body)
        repo_id = f"{asked['organization'] or 'someone'}/{asked['name']}"
        answer = {"url": f"{self.hub.address}/{repo_id}"}
        if repo_id in self.hub.repositories:
            return self._json(answer | {"error": "You already created this model repo"}, 409)
        repository = self.hub.repositories[repo_id] = Repository(asked.get("visibility") == "private")
        repository.commits.append(made_commit("initial commit", {".gitattributes": b"*.safetensors lfs\n"}, set()))
        self._json(answer)

    def _validate(self) -> None:
        try:
            ModelCard(json.loads(self.body)["content"])
        except Exception as error:
            return self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        self._json({"errors": [], "warnings": []})

    def _preupload(self, repo: str) -> None:
        if not self._may_write():
            return
        head = self.hub.head(repo)
        answers = []
        for each in json.loads(self.body)["files"]:
            path = each["path"]
            large = path.endswith(".safetensors")
            oid = _oid(head, path) if path in head.files else None
            answers.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._json({"files": answers})

    def _batch(self, repo: str) -> None:
        if not self._may_write():
            return
        objects = []
        for each in json.loads(self.body)["objects"]:
            oid = each["oid"]
            actions = {
                "upload": {"href": f"{self.hub.address}/lfs/{oid}?X-Amz-Signature=secret"},
                "verify": {"href": f"{self.hub.address}/lfs/verify"},
            }
            objects.append(each | ({} if oid in self.hub.objects else {"actions": actions}))
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._error(400, "another sha256")
        self.hub.objects[oid] = self.body
        self._json({})

    def _verify(self) -> None:
        asked = json.loads(self.body)
        held = self.hub.objects.get(asked["oid"])
        self._json({}) if held is not None and len(held) == asked["size"] else self._error(400, "not whole")

    def _commit(self, repo: str) -> None:
        if not self._may_write():
            return
        head = self.hub.head(repo)
        files, large, message = dict(head.files), set(head.large), ""
        for line in self.body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                large.add(value["path"])
            elif key == "deletedFile":
                del files[value["path"]]
                large.discard(value["path"])
        commit = made_commit(message, files, large, head.oid)
        self.hub.repositories[repo].commits.append(commit)
        self._json({"commitUrl": f"{self.hub.address}/{repo}/commit/{commit.oid}", "commitOid": commit.oid})

    # --- reading ---

    def _info(self, repo: str, revision: str | None) -> None:
        if (commit := self._readable(repo, revision or "main")) is None:
            return
        siblings = [{"rfilename": name} for name in commit.files]
        private = self.hub.repositories[repo].private
        self._json(
            {"id": repo, "modelId": repo, "sha": commit.oid, "private": private, "siblings": siblings, "tags": []}
        )

    def _tree(self, repo: str, revision: str) -> None:
        if (commit := self._readable(repo, revision)) is None:
            return
        entries: list[dict[str, Any]] = []
        for name, content in commit.files.items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
            if name in commit.large:
                entry |= {"lfs": {"oid": _oid(commit, name), "size": len(content), "pointerSize": 130}}
            entries.append(entry)
        self._json(entries)

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        if (commit := self._readable(repo, revision)) is None:
            return
        headers = {"X-Repo-Commit": commit.oid}
        if file not in commit.files:
            return self._error(404, "Entry not found", headers | {"X-Error-Code": "EntryNotFound"})
        self._answer(200, commit.files[file], headers | {"ETag": f'"{_oid(commit, file)}"'}, "application/octet-stream")

    # --- answers ---

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_write(self) -> bool:
        if not self._authorised():
            self._error(401, "Invalid username or password.")
            return False
        return True

    def _readable(self, repo: str, revision: str) -> Commit | None:
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and not self._authorised()):
            self._error(
                401 if not self._authorised() else 404, "Repository not found", {"X-Error-Code": "RepoNotFound"}
            )
            return None
        if (commit := repository.at(revision)) is None:
            self._error(404, "Revision not found", {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _json(self, content: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode(), {}, "application/json")

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        content = json.dumps({"error": message}).encode()
        self._answer(status, content, (headers or {}) | {"X-Error-Message": message}, "application/json")

    def _answer(self, status: int, content: bytes, headers: dict[str, str], kind: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def made_commit(message: str, files: dict[str, bytes], large: set[str], parent: str = "") -> Commit:
    """A commit that holds `files`, of which `large` are LFS objects."""
    tree = [(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())]
    return Commit(hashlib.sha1(json.dumps([parent, message, tree]).encode()).hexdigest(), message, files, large)


def _oid(commit: Commit, name: str) -> str:
    content = commit.files[name]
    return hashlib.sha256(content).hexdigest() if name in commit.large else _blob(content)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
