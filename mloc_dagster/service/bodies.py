"""Request bodies as texts of task files: YAML, JSON, a form with files; bounded in size and in time."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from mloc_dagster.service.problems import Problem
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.tree import MAX_BYTES

MAX_BULK_BYTES = 16 << 20
MAX_TASKS = 1000
_DEEPEST = 100
_BODY_SECONDS = 30.0
_YAML = frozenset({"text/yaml", "application/yaml", "application/x-yaml", "text/x-yaml", "text/plain"})
_UNSAID = frozenset({"", "application/x-www-form-urlencoded"})
"""What clients say when they were told nothing: `curl --data-binary @task.yaml`."""
_DOCUMENT = re.compile(r"^---(?=\s|$)[ \t]*", re.MULTILINE)
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_WHERE = "text/yaml, application/json or multipart/form-data"


@dataclass(frozen=True)
class Document:
    """The text of one task file; `file` is how faults call it, `name` the task's name when the text gives none, `line`
    how many lines of the body come before it."""

    text: str
    file: str = "<body>"
    name: str = "task"
    line: int = 0


async def one(request: Request) -> Document:
    """Return the task of a body; raises Problem."""
    found = await _documents(request, MAX_BYTES, bulk=False)
    if len(found) != 1:
        raise Problem(400, f"the body holds {len(found)} tasks", "send one task, or all of them to /api/v1/tasks/bulk")
    return found[0]


async def several(request: Request) -> list[Document]:
    """Return the tasks of a body; raises Problem."""
    found = await _documents(request, MAX_BULK_BYTES, bulk=True)
    if not found:
        raise Problem(400, "the body holds no task", "send YAML documents with --- between them, or a JSON list")
    if len(found) > MAX_TASKS:
        raise Problem(413, f"the body holds more than {MAX_TASKS} tasks, which is the most at once", "send less")
    return found


async def read_json(request: Request) -> Json:
    """Return the JSON of a body; raises Problem."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, f"the content type {kind[:80]!r} is not taken", "send application/json")
    text = _text(await _whole(request, MAX_BULK_BYTES))
    try:
        return await asyncio.to_thread(_storable_json, text)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {str(error)[:200]}", "send one JSON object") from None


def _storable_json(text: str) -> Json:
    value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text that can be stored
    _check_depth(value)
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no number of JSON")
    return value


def _check_depth(value: Json) -> None:
    """Raise Problem for what is nested deeper than is read again."""
    level = [value]
    for _ in range(_DEEPEST):
        parts = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [item for part in parts for item in part]
        if not level:
            return
    raise Problem(422, f"the body is nested more than {_DEEPEST} deep", "send the result flatter, or as a file of it")


async def _whole(request: Request, most: int) -> bytes:
    async with _in_time():
        return await _read(request, most)


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Give a client its time to send a body; raises Problem when it takes longer, or goes away."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            yield
    except TimeoutError:
        raise Problem(408, f"the body took longer than {_BODY_SECONDS:.0f} s", "send it at once") from None
    except ClientDisconnect:
        raise Problem(400, "the body ended early", "send it again") from None


async def _documents(request: Request, most: int, bulk: bool) -> list[Document]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _YAML | _UNSAID and kind not in ("application/json", "multipart/form-data"):
        raise Problem(415, f"the content type {kind[:80]!r} is not taken", f"send {_WHERE}")
    if kind == "multipart/form-data":
        async with _in_time():
            return await _form(request, most, bulk)
    body = await _whole(request, most)
    return await asyncio.to_thread(_parsed, _text(body), kind == "application/json", bulk)


def _parsed(text: str, as_json: bool, bulk: bool) -> list[Document]:
    if as_json:
        return _few(_json(text, bulk))
    return _few(_split(text, "<body>", "task")) if bulk else [Document(text)]


def _few(documents: Iterator[Document]) -> list[Document]:
    """No more than it takes to see that there are too many."""
    return list(islice(documents, MAX_TASKS + 1))


async def _read(request: Request, most: int) -> bytes:
    _check_length(request, most)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


async def _form(request: Request, most: int, bulk: bool) -> list[Document]:
    _check_length(request, most + (64 << 10))
    counted = Request(request.scope, _bounded(request, most + (64 << 10)))
    found: list[Document] = []
    try:
        async with counted.form(max_files=MAX_TASKS, max_fields=10, max_part_size=most) as form:
            for key, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    raise Problem(
                        400, f"the field {key[:80]!r} is no file", "send the task as a file: -F file=@task.yaml"
                    )
                file = PurePosixPath((value.filename or "task").replace("\\", "/")).name or "task"
                text, name = _text(await value.read()), _NAME.sub("-", PurePosixPath(file).stem)
                parts = _split(text, file, name) if bulk else iter([Document(text, file, name)])
                found += await asyncio.to_thread(_few, parts)
                if len(found) > MAX_TASKS:
                    break
    except HTTPException as error:  # Starlette's own, for a form that is not one
        raise Problem(400, f"the form cannot be read: {error.detail[:200]}", "send it as curl -F does") from None
    return found


def _bounded(request: Request, most: int):
    seen = 0

    async def receive():
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise _too_large(most)
        return message

    return receive


def _check_length(request: Request, most: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > most:
        raise _too_large(most)


def _too_large(most: int) -> Problem:
    way_out = "keep data in its own file and name it with data.jsonl or data.url, or send fewer tasks at once"
    return Problem(413, f"the body is larger than {most >> 10} KiB", way_out, headers={"Connection": "close"})


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 text: {error.reason} at byte {error.start}", "send UTF-8") from None


def _split(text: str, file: str, name: str) -> Iterator[Document]:
    """The documents of a YAML stream; inside one, no line can begin with `---` (YAML 1.2, 9.1.2)."""
    line = before = 0
    for start, end in _between(text):
        line, before, part = line + text.count("\n", before, start), start, text[start:end]
        if any(line.strip() and not line.startswith(("#", "%", "...")) for line in part.splitlines()):
            yield Document(part, file, name, line)


def _between(text: str) -> Iterator[tuple[int, int]]:
    """Where documents begin and end."""
    start = 0
    for mark in _DOCUMENT.finditer(text):
        yield start, mark.start()
        start = mark.end()
    yield start, len(text)


def _json(text: str, bulk: bool) -> Iterator[Document]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        stripped = "\n" not in text and text.count(": ") > 1
        way_out = "curl -d removes line ends: send --data-binary @FILE, as text/yaml" if stripped else f"send {_WHERE}"
        raise Problem(400, f"the body is not JSON: {str(error)[:200]}", way_out) from None
    items = value.get("tasks", [value]) if bulk and isinstance(value, Mapping) else value
    if not bulk:
        yield from _json_task(value, "<body>", text)
        return
    if not isinstance(items, list):
        raise Problem(400, "the body is no list of tasks", 'send [{…}, {…}] or {"tasks": […]}')
    for number, item in enumerate(items):
        yield from _json_task(item, f"<body>[{number}]", None)


def _json_task(value: Json, file: str, written: str | None) -> Iterator[Document]:
    """A task as JSON, or its YAML in a string. `written`: the JSON as it came, which gives faults their right lines."""
    if isinstance(value, Mapping) and "yaml" in value:
        more = sorted(str(key)[:40] for key in value if key != "yaml")
        if more or not isinstance(value["yaml"], str):
            what = f"beside yaml there is {', '.join(more)}" if more else "yaml is no text"
            raise Problem(400, f'{file}: {what}; only {{"yaml": "…"}} is taken', "put all else into the task file")
        yield Document(value["yaml"], file)
    elif isinstance(value, str):
        yield Document(value, file)
    elif isinstance(value, Mapping):
        as_is = written is not None and "\\u" not in written and "\t" not in written  # YAML reads these otherwise
        yield Document(written if as_is and written else json.dumps(value, ensure_ascii=False, indent=1), file)
    else:
        raise Problem(400, f"{file} is {type(value).__name__}, no task", 'send {"yaml": "…"} or the task itself')
