"""A hub on the loopback interface: the API paths that huggingface_hub and s3fs use, plain files, ranges, faults.

What is written needs the token `right`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

LARGE = 4096
"""Files of at least so many bytes are large files: their ETag is the SHA-256 of their content."""

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?$")
_UPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main$")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch$")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Asked:
    """One request, and how many bytes of content it was given."""

    method: str
    path: str
    token: str | None
    start: int = 0
    sent: int = 0


@dataclass
class Hub:
    """What the server has, what it does wrong, and what it was asked."""

    address: str = ""
    repositories: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    facts: dict[tuple[str, str], dict[str, dict]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """Path ending → statuses that the next requests for it get."""
    break_after: dict[str, list[int]] = field(default_factory=dict)
    """Path ending → bytes after which the next downloads of it break off."""
    pause: float = 0.0
    """Seconds to wait after every 64 KiB."""
    without_ranges: bool = False
    spoil: dict[str, list[int]] = field(default_factory=dict)
    """Path ending → one item for each of the next downloads of it that gets wrong bytes."""
    large: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by their SHA-256, committed or not."""

    def add(self, kind: str, name: str, files: dict[str, bytes]) -> str:
        """Publish a commit on main and return it."""
        self.repositories[kind, name] = files
        self.commits[kind, name] = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.facts[kind, name] = {path: _facts(content) for path, content in files.items()}
        return self.commits[kind, name]

    def downloads(self, ending: str) -> list[Asked]:
        """The requests that were sent content of a path with this ending."""
        return [asked for asked in self.asked if asked.method == "GET" and asked.path.endswith(ending) and asked.sent]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        the_hub = hub

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are what is tested here."""


class _Handler(BaseHTTPRequestHandler):
    the_hub: Hub
    asked: Asked
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self.command)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.asked = Asked(self.command, path, self.headers.get("Authorization"))
        self.the_hub.asked.append(self.asked)
        status = self._fault(path) or (0 if path.startswith("/large/") else self._denied())
        if status:
            self._send(status, b"{}", {"X-Error-Message": "no"} if status < 500 else {})
            return
        upload, batch = _UPLOAD.fullmatch(path), _BATCH.fullmatch(path)
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate_card(json.loads(body)["content"])
        elif path.startswith("/large/"):
            self.the_hub.large[path.removeprefix("/large/")] = body
            self._send(200, b"", {})
        elif upload and upload[2] == "preupload":
            self._preupload(upload[1], json.loads(body)["files"])
        elif upload:
            self._commit(upload[1], [json.loads(line) for line in body.splitlines()])
        elif batch:
            self._batch(json.loads(body)["objects"])
        else:
            self._send(404, b"{}", {})

    do_PUT = do_POST

    def _denied(self) -> int:
        return 0 if self.headers.get("Authorization") == "Bearer right" else 401

    def _create(self, asked: dict) -> None:
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        there = ("models", name) in self.the_hub.repositories
        if not there:
            self.the_hub.add("models", name, {})
            if asked.get("visibility") == "private":
                self.the_hub.private.add(name)
        self._json(409 if there else 200, {"url": f"{self.the_hub.address}/{name}"})

    def _validate_card(self, content: str) -> None:
        path = re.search(r"^base_model: */", content, re.MULTILINE)
        errors = [{"message": "base_model is no model id"}] if path else []
        self._json(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, name: str, files: list[dict]) -> None:
        """Large files are told apart by size; one that is there as it is comes with its id."""
        have = self.the_hub.facts["models", name]
        answer = []
        for file in files:
            there = have.get(file["path"], {})
            mode = "lfs" if file["size"] >= LARGE else "regular"
            oid = there["lfs"]["oid"] if "lfs" in there else there.get("oid")
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json(200, {"files": answer})

    def _batch(self, objects: list[dict]) -> None:
        for entry in objects:
            if entry["oid"] not in self.the_hub.large:
                entry["actions"] = {"upload": {"href": f"{self.the_hub.address}/large/{entry['oid']}"}}
        self._json(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict]) -> None:
        files = dict(self.the_hub.repositories["models", name])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.the_hub.large[value["oid"]]
        commit = self.the_hub.add("models", name, files)
        self._json(200, {"commitUrl": f"{self.the_hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def _json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked = Asked(method, path, self.headers.get("Authorization"))
        self.the_hub.asked.append(self.asked)
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        status = self._fault(path)
        if status:
            self._send(status, b"{}", {})
            return
        api, resolve = _API.fullmatch(path), _RESOLVE.fullmatch(path)
        if api:
            self._api(api[1], api[2], api[3], api[4])
        elif resolve:
            self._file_of("datasets" if resolve[1] else "models", resolve[2], resolve[3], resolve[4])
        elif path in self.the_hub.files:
            content = self.the_hub.files[path]
            self._content(content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})
        elif "list-type" in query:
            self._bucket(path.strip("/"), query)
        else:
            self._send(404, b"", {})

    def _fault(self, path: str) -> int | None:
        for ending, statuses in self.the_hub.statuses.items():
            if path.endswith(ending) and statuses:
                return statuses.pop(0)
        return None

    def _refusal(self, kind: str, name: str, revision: str | None) -> tuple[int, str, str] | None:
        hub = self.the_hub
        if name in hub.private and self.headers.get("Authorization") != "Bearer right":
            return 401, "RepoNotFound", "Repository Not Found"
        if (kind, name) not in hub.repositories:
            return 404, "RepoNotFound", "Repository Not Found"
        if revision not in (None, "main", hub.commits[kind, name]):
            return 404, "RevisionNotFound", "Revision Not Found"
        if name in hub.gated and self.headers.get("Authorization") != "Bearer right":
            return 403, "GatedRepo", "Access to this repository is restricted"
        return None

    def _api(self, kind: str, name: str, what: str | None, revision: str | None) -> None:
        refused = self._refusal(kind, name, revision)
        if refused:
            status, code, message = refused
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})
            return
        files = self.the_hub.facts[kind, name]
        if what == "tree":
            answer: object = [{"type": "file", "path": path, **facts} for path, facts in files.items()]
        else:
            siblings = [{"rfilename": path, **facts} for path, facts in files.items()]
            answer = {"id": name, "sha": self.the_hub.commits[kind, name], "siblings": siblings, "private": False}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file_of(self, kind: str, name: str, revision: str, file: str) -> None:
        refused = self._refusal(kind, name, revision)
        content = None if refused else self.the_hub.repositories[kind, name].get(file)
        if content is None:
            status, code, message = refused or (404, "EntryNotFound", "Entry not found")
            self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})
            return
        facts = self.the_hub.facts[kind, name][file]
        etag = facts["lfs"]["oid"] if "lfs" in facts else facts["oid"]
        self._content(content, {"ETag": f'"{etag}"', "X-Repo-Commit": self.the_hub.commits[kind, name]})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        start, end = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, headers["ETag"])
        if asked and same and not self.the_hub.without_ranges:
            start = int(asked[1])
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            end = min(end, int(asked[2]) + 1) if asked[2] else end
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self.asked.start = start
        if self.command == "GET" and self._next(self.the_hub.spoil):
            content = b"\0" * len(content)
        status = 206 if "Content-Range" in headers else 200
        self._send(
            status, content[start:end], headers | {"Accept-Ranges": "bytes"}, self._next(self.the_hub.break_after)
        )

    def _next(self, faults: dict[str, list[int]]) -> int | None:
        """The next fault that is due for this download."""
        for ending, left in faults.items():
            if self.command == "GET" and self.asked.path.endswith(ending) and left:
                return left.pop(0)
        return None

    def _bucket(self, bucket: str, query: dict[str, str]) -> None:
        """ListObjectsV2 of the files below `/<bucket>/`, all in one page."""
        prefix = query.get("prefix", "")
        keys = [
            path.removeprefix(f"/{bucket}/") for path in self.the_hub.files if path.startswith(f"/{bucket}/{prefix}")
        ]
        listed = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.the_hub.files[f'/{bucket}/{key}'])}</Size><ETag>&quot;e&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        head = f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>"
        answer = f"<ListBucketResult>{head}{listed}</ListBucketResult>"
        self._send(200, answer.encode(), {"Content-Type": "application/xml"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], limit: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = 0
        is_file = "ETag" in headers
        try:
            while self.command != "HEAD" and sent < len(body) and (limit is None or sent < limit):
                block = body[sent : min(sent + 65536, limit or len(body))]
                sent += len(block)
                self.asked.sent = sent if is_file else 0
                self.wfile.write(block)
                if is_file and self.the_hub.pause:
                    time.sleep(self.the_hub.pause)
        except OSError:
            self.close_connection = True
        if limit is not None:
            self.close_connection = True


def _facts(content: bytes) -> dict:
    facts: dict = {"size": len(content), "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    facts["blobId"] = facts["oid"]
    if len(content) >= LARGE:
        digest = hashlib.sha256(content).hexdigest()
        facts["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 130}
    return facts
