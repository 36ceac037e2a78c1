"""A model hub on the loopback: the requests that huggingface_hub's upload makes, answered as the real one answers them.

Git LFS batch: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md; the rest as huggingface_hub asks for it.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WRITES, READS, BREAKS = (
    "hf_writes",
    "hf_reads",
    "hf_breaks",
)  # tokens: an owner's, a reader's, one whose commits fail


@dataclass
class Hub:
    """What lies on it, and what was asked of it."""

    url: str = ""
    lfs: bool = True  # whether binary files go by Git LFS, else within the commit
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # repository -> path -> bytes
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS objects by SHA-256
    created: list[dict[str, Any]] = field(default_factory=list)  # what repositories were asked for with
    asked: list[str] = field(default_factory=list)  # method and path of each request


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Answers,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at `asked`."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        body, path = self._body(), self.path.split("?")[0]
        self.hub.asked.append(f"{method} {path}")
        if path.startswith("/storage/"):  # its address is the leave to write
            self._store(path.removeprefix("/storage/"), body)
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (WRITES, READS, BREAKS):
            self._say(401, {"error": "Invalid username or password."})
        elif token == READS and method == "POST":
            self._say(403, {"error": "this token may read only"})
        elif path == "/api/whoami-v2":
            role = "read" if token == READS else "write"
            self._say(200, {"type": "user", "name": "me", "auth": {"type": "access_token", "accessToken": {"role": role}}})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._say(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._say(200, {"transfer": "basic", "objects": [self._lfs(o) for o in json.loads(body)["objects"]]})
        else:
            self._of_a_model(path, body, token)

    def _of_a_model(self, path: str, body: bytes, token: str) -> None:
        owner, name, *what = path.removeprefix("/api/models/").split("/")
        files = self.hub.files.get(f"{owner}/{name}")
        if files is None:
            self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif what[:1] == ["preupload"]:
            self._say(200, {"files": [self._mode(f, files) for f in json.loads(body)["files"]]})
        elif what[:1] == ["commit"] and token == BREAKS:
            self._say(500, {"error": "the hub is out of order"})
        elif what[:1] == ["commit"]:
            self._commit(f"{owner}/{name}", files, [json.loads(line) for line in body.splitlines()])
        elif not what or what[0] == "revision":
            self._say(200, {"id": f"{owner}/{name}", "sha": _oid(files), "private": False, "siblings": []})
        else:
            self._say(404, {"error": f"no such thing: {path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        self.hub.created.append(asked)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        status = 409 if name in self.hub.files else 200
        self.hub.files.setdefault(name, {})
        self._say(status, {"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})

    def _mode(self, file: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        """By LFS what is a weight file or not text, as the hub's .gitattributes say; with the digest of what is there."""
        lfs = self.hub.lfs and (file["path"].endswith(".safetensors") or b"\0" in base64.b64decode(file["sample"]))
        there = files.get(file["path"])
        kept = {} if there is None else {"oid": hashlib.sha256(there).hexdigest() if lfs else _git_hash(there)}
        return {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False} | kept

    def _lfs(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.stored:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.hub.url}/storage/{wanted['oid']}"}}}

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._say(400, {"error": "the bytes are not those that were announced"})
        else:
            self.hub.stored[oid] = body
            self._say(200, {})

    def _commit(self, repository: str, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        for line in lines:
            told = line["value"]
            if line["key"] == "file":
                files[told["path"]] = base64.b64decode(told["content"])
            elif line["key"] == "lfsFile":
                files[told["path"]] = self.hub.stored[told["oid"]]
        oid = _oid(files)
        self._say(200, {"commitUrl": f"{self.hub.url}/{repository}/commit/{oid}", "commitOid": oid})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _say(self, status: int, told: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _oid(files: dict[str, bytes]) -> str:
    whole = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())})
    return hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()
