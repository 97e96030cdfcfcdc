"""The client: a method for each thing that the service does, over the standard library's HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any, Literal, cast
from urllib.parse import quote, urlencode, urlsplit

from mloc_dagster.client import shapes
from mloc_dagster.files.atomic import half_file

_BASE = "/api/v1"
_LONGEST_PROBLEM = 1 << 20
_SIGN_SECONDS = 60.0
"""The service says at least every quarter of that that a stream lives."""
_BLOCK = 1 << 20
_OVER = ("SUCCESS", "FAILURE", "CANCELED")
Query = Mapping[str, str | int | float | bool | None]
Verb = Literal["drain", "cordon", "uncordon"]


class Refused(Exception):
    """A request that was not served; the message says why, and the way out, with every fault of a task file."""

    def __init__(self, problem: shapes.ProblemDetails) -> None:
        lines = [problem["detail"], *(fault["text"] for fault in problem.get("faults", []))]
        super().__init__("\n".join([*lines, *([problem["hint"]] if "hint" in problem else [])]))
        self.status, self.problem = problem["status"], problem


class Client:
    """One service. Every method raises Refused, or OSError when nobody answers within `timeout` seconds."""

    def __init__(
        self, address: str = "http://127.0.0.1:3000", token: str = "", *, timeout: float = 60.0, ca: Path | None = None
    ) -> None:
        """`ca`: certificates to trust in place of the machine's own. Raises ValueError for an address that is none of
        http, and OSError when `ca` cannot be read."""
        if urlsplit(address).scheme not in ("http", "https"):
            raise ValueError(f"{address!r} is no address of a service; write it as http://HOST:PORT")
        self._address, self._token, self._timeout = address.rstrip("/"), token, timeout
        # a token goes to this address and to no other: no redirect is followed, no proxy of the environment asked
        trusted = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca))
        self._opener = urllib.request.build_opener(_NoRedirect(), urllib.request.ProxyHandler({}), trusted)

    @property
    def token(self) -> str:
        """What opens the service."""
        return self._token

    def submit(self, text: str, *, fresh: bool = False, priority: int = 0) -> shapes.Submitted:
        """Submit a task file (YAML) and return at once."""
        query = {"fresh": fresh, "priority": priority}
        return cast(shapes.Submitted, self._json("POST", "/tasks", query, text.encode(), "text/yaml"))

    def check(self, text: str) -> shapes.Rehearsed:
        """Check a task file, and do nothing with it."""
        return cast(shapes.Rehearsed, self._json("POST", "/tasks", {"dry_run": True}, text.encode(), "text/yaml"))

    def submit_all(self, texts: list[str]) -> shapes.Bulk:
        """Submit many task files, each answered for itself."""
        body = json.dumps([{"yaml": text} for text in texts]).encode()
        return cast(shapes.Bulk, self._json("POST", "/tasks/bulk", {}, body, "application/json"))

    def task(self, task_id: str) -> shapes.Task:
        """Tell of a task."""
        return cast(shapes.Task, self._json("GET", f"/tasks/{_part(task_id)}"))

    def tasks(
        self,
        *,
        status: str | None = None,
        owner: str | None = None,
        project: str | None = None,
        task_type: str | None = None,
        since: float | str | None = None,
    ) -> Iterator[shapes.Task]:
        """Yield tasks, newest first; `since` in seconds since the epoch, or ISO 8601."""
        query: dict[str, Any] = {"status": status, "owner": owner, "project": project, "taskType": task_type}
        while True:
            page = cast(shapes.TaskPage, self._json("GET", "/tasks", {**query, "since": since}))
            yield from page["tasks"]
            if page["cursor"] is None:
                return
            query["cursor"] = page["cursor"]

    def cancel(self, task_id: str) -> shapes.Task:
        """Cancel a task."""
        return cast(shapes.Task, self._json("DELETE", f"/tasks/{_part(task_id)}"))

    def replay(self, task_id: str) -> shapes.Task:
        """Do a task again that failed or was cancelled; returns the new run of it."""
        return cast(shapes.Task, self._json("POST", f"/tasks/{_part(task_id)}/replay"))

    def wait(self, task_id: str, *, seconds: float = 3600.0) -> shapes.Task:
        """Wait until a task is over; raises TimeoutError after so long."""
        until = time.monotonic() + seconds
        while (found := self.task(task_id))["status"] not in _OVER:
            if time.monotonic() > until:
                raise TimeoutError(f"{task_id} is {found['status']} after {seconds:g} s")
            time.sleep(0.5)
        return found

    def logs(self, task_id: str, *, follow: bool = False, stage: str | None = None) -> Iterator[str]:
        """Yield what its steps wrote, line by line; with `follow` to its end, however long it is silent.

        Raises ConnectionError when the service goes away before that.
        """
        query = {"follow": follow, "stage": stage}
        with self._open("GET", f"/tasks/{_part(task_id)}/logs", query, patience=_SIGN_SECONDS) as answer:
            yield from filter(None, _lines(answer))  # an empty one says that it lives

    def result(self, task_id: str) -> shapes.Result:
        """Return the results of a task, by stage."""
        return cast(shapes.Result, self._json("GET", f"/results/{_part(task_id)}"))

    def files(self, task_id: str) -> shapes.Files:
        """List the files of a result."""
        return cast(shapes.Files, self._json("GET", f"/results/{_part(task_id)}/files"))

    def download(self, task_id: str, name: str, to: Path) -> Path:
        """Write a file of a result to a path, and return it; what is there is replaced once all has come.

        Its length is checked, and its digest where the service tells one; raises OSError when it is not that.
        """
        with self._open("GET", f"/results/{_part(task_id)}/files/{quote(name)}", {}) as answer:
            handle, half = half_file(to)
            try:
                with os.fdopen(handle, "wb") as file:
                    _copy_whole(answer, file, name)
                    os.chmod(half, 0o644)
                return Path(half).replace(to)
            except BaseException:
                Path(half).unlink(missing_ok=True)
                raise

    def upload(self, task_id: str, stage: str, path: Path) -> shapes.Stored:
        """Add a file to the result of a stage that was made elsewhere; its digest is checked on the other side."""
        with path.open("rb") as file:
            digest = base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()
            size = file.tell()
            file.seek(0)
            headers = {"Content-Length": str(size), "Repr-Digest": f"sha-256=:{digest}:"}
            where = f"/results/{_part(task_id)}/{_part(stage)}/files/{_part(path.name)}"
            found = self._json("PUT", where, {}, file, "application/octet-stream", headers)
        return cast(shapes.Stored, found)

    def workers(self) -> list[shapes.Worker]:
        """List workers, and who holds what of them."""
        return cast(shapes.Workers, self._json("GET", "/workers"))["workers"]

    def set_worker(self, name: str, verb: Verb) -> shapes.Worker:
        """Have a worker take no new runs, or take them again."""
        return cast(shapes.Worker, self._json("POST", f"/workers/{_part(name)}/{verb}"))

    def dead_letters(self, *, cause: str | None = None) -> list[shapes.DeadLetter]:
        """List runs that failed for good and that nobody has done again."""
        found = self._json("GET", "/dead_letters", {"cause": cause, "limit": 500})
        return cast(shapes.DeadLetters, found)["dead_letters"]

    def stats(
        self,
        *,
        user: str | None = None,
        project: str | None = None,
        start_date: str | None = None,
        end_date: str | None = None,
    ) -> shapes.Stats:
        """Return usage; days as YYYY-MM-DD, both included."""
        query = {"user": user, "project": project, "start_date": start_date, "end_date": end_date}
        return cast(shapes.Stats, self._json("GET", "/stats", query))

    def ready(self) -> str:
        """Return what the service says of itself: `ready`, else it raises Refused."""
        with self._open("GET", "/readyz", {}, base="") as answer:
            return str(json.load(answer)["status"])

    def metrics(self) -> str:
        """Return the metrics of the service, in the text format of Prometheus."""
        with self._open("GET", "/metrics", {}, base="") as answer:
            return answer.read().decode()

    def _json(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: bytes | IO[bytes] | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
        patience: float = 0.0,
    ) -> Any:
        with self._open(method, path, query or {}, body, kind, headers, patience) as answer:
            return json.load(answer)

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        query: Query,
        body: bytes | IO[bytes] | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
        patience: float = 0.0,
        base: str = _BASE,
    ) -> Iterator[HTTPResponse]:
        told = {key: _text(value) for key, value in query.items() if value is not None}
        url = f"{self._address}{base}{path}{f'?{urlencode(told)}' if told else ''}"
        request = urllib.request.Request(url, body, {**(headers or {})}, method=method)
        if token := self.token:
            request.add_header("Authorization", f"Bearer {token}")
        if kind:
            request.add_header("Content-Type", kind)
        try:
            with self._opener.open(request, timeout=max(self._timeout, patience)) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            raise Refused(_problem(error)) from None
        except HTTPException as error:
            raise ConnectionError(f"{self._address} ended its answer early: {error!r}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl) -> None:  # the standard library names these
        return None


def _problem(error: urllib.error.HTTPError) -> shapes.ProblemDetails:
    """What the service says, or a proxy before it that says it in its own way."""
    text = error.read(_LONGEST_PROBLEM).decode("utf-8", "replace")
    try:
        told = json.loads(text)
        if isinstance(told, dict) and {"detail", "status"} <= told.keys():
            return cast(shapes.ProblemDetails, told)
    except ValueError:
        pass
    detail = f"{error.code} {error.reason}: {' '.join(text.split())[:200]}"
    return {"type": "about:blank", "title": str(error.reason), "status": error.code, "detail": detail}


def _lines(answer: HTTPResponse) -> Iterator[str]:
    """Lines without their ends; raises IncompleteRead when it is cut off, which its own iterator takes for the end."""
    rest = b""
    while block := answer.read1(_BLOCK):
        *whole, rest = (rest + block).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
    if rest:
        yield rest.decode("utf-8", "replace")


def _copy_whole(answer: HTTPResponse, file: IO[bytes], name: str) -> None:
    """Raises ConnectionError for a body that ended early, OSError for one with another digest than was told."""
    length, told = answer.headers.get("Content-Length"), answer.headers.get("Repr-Digest", "")
    digest = hashlib.sha256()
    while block := answer.read(_BLOCK):
        digest.update(block)
        file.write(block)
    if length is not None and file.tell() != int(length):
        raise ConnectionError(f"{name!r} ended after {file.tell()} of {length} bytes; ask for it again")
    found = base64.b64encode(digest.digest()).decode()
    if told.startswith("sha-256=:") and told != f"sha-256=:{found}:":
        raise OSError(f"{name!r} came with the digest sha-256=:{found}:, not {told}; ask for it again")


def _part(text: str) -> str:
    return quote(text, safe="")


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
