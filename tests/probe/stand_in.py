"""A stand-in for the part of the Hugging Face Hub's HTTP API that the real client uses for models; all in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

TOKEN = "hf_stand_in"
LARGE = ".safetensors"  # goes to the large file storage, as the .gitattributes of every new repository say


@dataclass
class Repo:
    """Commits by id, oldest first: (message, files); what its branches and tags point to."""

    private: bool = False
    gated: bool = False
    commits: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, message: str, changes: Mapping[str, bytes | None], branch: str = "main") -> str:
        """None deletes a file."""
        parent = self.refs.get(branch)
        kept = {**(self.commits[parent][1] if parent else {}), **changes}
        files = {name: content for name, content in kept.items() if content is not None}
        listed = "".join(f"{name} {hashlib.sha1(files[name]).hexdigest()}\n" for name in sorted(files))
        sha = hashlib.sha1(f"{parent} {message}\n{listed}".encode()).hexdigest()
        self.commits[sha] = (message, files)
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """The stand-in's state; ``asked`` are the requests so far, as (method, path); ``full`` takes no large files."""

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.full = False

    def create(self, name: str, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return repo


class Refusal(Exception):
    """An answer that is no success: status, and the Hub's own code and message where it has them."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.message = status, code, message


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for its header's acknowledgement
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        pass

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.hub.asked.append((self.command, parts.path))
        try:
            for pattern, handler in _ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {parts.path}"):
                    handler(self, **{name: unquote(value) for name, value in match.groupdict().items()})
                    return
            raise Refusal(404, message=f"the stand-in has no {self.command} {parts.path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, b"{}", {name: value for name, value in headers.items() if value})

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _may_write(self) -> None:
        given = self.headers.get("Authorization")
        if given is None:
            raise Refusal(401, message="Invalid username or password.")
        self._check(given)

    def _check(self, given: str | None) -> None:
        if given not in (None, f"Bearer {TOKEN}"):
            raise Refusal(401, message="Invalid credentials in Authorization header")

    def _repo(self, name: str) -> Repo:
        given = self.headers.get("Authorization")
        self._check(given)
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and given is None):
            raise Refusal(404 if given else 401, "RepoNotFound", "Repository not found")
        if repo.gated:
            raise Refusal(403, "GatedRepo", "Access to this model is restricted")
        return repo

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self._repo(name)
        sha = repo.resolve(revision)
        if sha is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha][1]

    def create(self) -> None:
        self._may_write()
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            self._json({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
            return
        self.hub.create(name, asked.get("visibility") == "private" or bool(asked.get("private")))
        self._json({"url": f"{self.hub.url}/{name}"})

    def info(self, repo: str, revision: str = "main") -> None:
        sha, files = self._at(repo, revision)
        siblings = [{"rfilename": name} for name in files]
        self._json({"id": repo, "sha": sha, "private": self.hub.repos[repo].private, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        _, files = self._at(repo, revision)
        listed = []
        for name, content in files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            listed.append(entry)
        self._json(listed)

    def branch(self, repo: str, branch: str) -> None:
        self._may_write()
        held = self._repo(repo)
        if branch in held.refs:
            raise Refusal(409, message="Reference already exists")
        held.refs[branch] = held.refs["main"]
        self._json({})

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        if not re.match(r"---\n(?:[a-z_]+: [\w./-]+\n)+---\n", content):
            self._json({"errors": [{"message": "the front matter is no YAML"}]}, 400)
            return
        self._json({})

    def preupload(self, repo: str, revision: str) -> None:
        self._may_write()
        _, files = self._at(repo, revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            name, held = file["path"], files.get(file["path"])
            mode = "lfs" if name.endswith(LARGE) else "regular"
            oid = None if held is None else hashlib.sha256(held).hexdigest() if mode == "lfs" else _blob(held)
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def batch(self, repo: str) -> None:
        self._may_write()
        self._repo(repo)
        objects = []
        for one in json.loads(self.body)["objects"]:
            answer = dict(one)
            if one["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if self.hub.full:
            raise Refusal(403, message="Storage quota exceeded")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, message="the content is not what was announced")
        self.hub.objects[oid] = self.body
        self._send(200, b"")

    def commit(self, repo: str, revision: str) -> None:
        self._may_write()
        held = self._repo(repo)
        self._at(repo, revision)
        message = ""
        files: dict[str, bytes | None] = {}
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                files[value["path"]] = None
            else:
                assert entry["key"] == "lfsFile", entry["key"]
                files[value["path"]] = self.hub.objects[value["oid"]]
        sha = held.commit(message, files, revision)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def resolve(self, repo: str, revision: str, file: str) -> None:
        sha, files = self._at(repo, revision)
        if file not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        content = files[file]
        etag = hashlib.sha256(content).hexdigest() if file.endswith(LARGE) else _blob(content)
        self._send(200, content, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'})


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>[\w.%-]+)"
_ROUTES = [
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate),
    (f"GET /api/models/{_REPO}", _Handler.info),
    (f"GET /api/models/{_REPO}/revision/{_REVISION}", _Handler.info),
    (f"GET /api/models/{_REPO}/tree/{_REVISION}", _Handler.tree),
    (f"POST /api/models/{_REPO}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (f"POST /api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    (f"POST /api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT /lfs/(?P<oid>[0-9a-f]{64})", _Handler.store),
    (f"(?:GET|HEAD) /{_REPO}/resolve/{_REVISION}/(?P<file>.+)", _Handler.resolve),
]


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[Hub]:
    """A running hub that the real client takes for its own, with an empty cache and a valid token."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    # What HF_ENDPOINT, HF_HUB_CACHE and friends set when the client is imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage speaks a protocol of its own
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/no-token")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_OIDC_RESOURCE", raising=False)
    huggingface_hub.close_session()  # one from before may know of a proxy
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()
        server.server_close()
