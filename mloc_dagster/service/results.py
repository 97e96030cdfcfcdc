"""`/api/v1/results`: what tasks made, down and up; nothing is read or written outside of the results folder."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dagster._core.utils import is_valid_run_id
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    MalformedRangeHeader,
    RangeNotSatisfiable,
    Response,
    StreamingResponse,
)

from mloc_dagster.client import shapes
from mloc_dagster.definitions.execution import task_id_of
from mloc_dagster.files.links import inside, open_inside
from mloc_dagster.service import uploads
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.bodies import read_json
from mloc_dagster.service.endpoint import Endpoint, Given, Parameter
from mloc_dagster.service.problems import Problem
from mloc_dagster.store import received
from mloc_dagster.store.digests import file_digest
from mloc_dagster.store.received import NotStored
from mloc_dagster.store.results import RESPONSES, Envelope

_BLOCK = 1 << 16
_MOST_UPLOADS = 32
_PAGE = (
    Parameter("page_size", "Results a page.", "integer", 50, 1, 500),
    Parameter("cursor", "The id of the last result of the page before."),
)
_FILE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",  # a page among the results is no page of the service
    "Cache-Control": "no-cache",
}


class Results:
    """The endpoints of results and their files."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._home, self._uploads = backend, backend.home, 0

    def endpoints(self) -> list[Endpoint]:
        """Return them, those with fixed names first."""
        form = ("multipart/form-data",)
        upload = {"answer": shapes.Stored, "status": 201, "scope": "submit", "problems": (400, 404, 408, 409, 413, 503)}
        there = {200: "The same file was there already."}
        return [
            Endpoint("GET", "/results", self.list, "List results by id.", shapes.ResultPage, query=_PAGE,
                     problems=(422,)),
            Endpoint(
                "POST", "/results", self.receive, "Take a result in that was made elsewhere.", shapes.Stored, 201,
                "submit", takes=("application/json",), problems=(400, 408, 409, 413, 415, 422),
                also={200: "The same result was there already."},
            ),
            Endpoint("GET", "/results/{id}", self.show, "The results of a task, by stage.", shapes.Result,
                     problems=(404,)),
            Endpoint("GET", "/results/{id}/files", self.files, "List the files of a result.", shapes.Files,
                     problems=(404,)),
            Endpoint("POST", "/results/{id}/files", self.upload, "Add a file to a result of one stage.", takes=form,
                     also=there, **upload),
            Endpoint("GET", "/results/{id}/files/{name:path}", self.download, "A file, or with Range a part of it.",
                     None, media="application/octet-stream", problems=(400, 404, 416), also={206: "The part."}),
            Endpoint(
                "PUT", "/results/{id}/files/{name}", self.put, "Add a file to a result of one stage, as the raw body.",
                takes=("application/octet-stream",), also=there, **upload,
            ),
            Endpoint("GET", "/results/{id}/{stage}", self.stage, "The result of one stage.", shapes.Envelope,
                     problems=(400, 404, 416)),
            Endpoint(
                "PUT", "/results/{id}/{stage}/files/{name}", self.put, "Add a file to the result of a stage, raw.",
                takes=("application/octet-stream",), also=there, **upload,
            ),
            Endpoint("POST", "/results/{id}/{stage}/files", self.upload, "Add a file to the result of a stage.",
                     takes=form, also=there, **upload),
        ]  # fmt: skip

    async def list(self, _request: Request, given: Given) -> Response:
        """Tell of results, sorted by id."""
        work = partial(self._page, given.text("cursor") or "", given.integer("page_size"))
        return JSONResponse(await self._backend.thread(work))

    async def show(self, request: Request, _given: Given) -> Response:
        """Send the envelopes of all stages, piece by piece: they may be large."""
        number, stages = await self._stages(request)
        paths = {folder.name: folder / RESPONSES for folder in stages}
        return StreamingResponse(_joined(number, paths, self._home.results), media_type="application/json")

    async def stage(self, request: Request, _given: Given) -> Response:
        """Send the envelope of one stage."""
        _, stages = await self._stages(request)
        wanted = request.path_params["stage"]
        for folder in stages:
            if folder.name == wanted:
                path = inside(folder / RESPONSES, self._home.results)
                if path is not None:
                    return _Part(path, media_type="application/json")
        raise Problem(404, f"there is no stage {wanted[:80]!r}", f"there are {_names(stages)}")

    async def receive(self, request: Request, _given: Given) -> Response:
        """Store an envelope."""
        try:
            envelope = Envelope.model_validate(await read_json(request))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the body"
            way_out = f"send {{{', '.join(Envelope.model_fields)}}}"
            raise Problem(422, f"{place}: {first['msg']}", way_out) from None
        new = await self._backend.thread(partial(self._receive, envelope))
        path = received.folder_of(self._home, envelope) / RESPONSES
        number = path.parts[-3]
        size, digest = await asyncio.to_thread(_measured, path)
        told: shapes.Stored = {"ok": True, "id": number, "name": RESPONSES, "size": size, "sha256": digest}
        return JSONResponse(told, 201 if new else 200, headers={"Location": f"/api/v1/results/{number}"})

    async def files(self, request: Request, _given: Given) -> Response:
        """Tell of files."""
        number, _ = await self._stages(request)
        found, complete = await self._backend.thread(partial(received.files_of, self._home, number))
        return JSONResponse({"id": number, "files": found, "complete": complete})

    async def download(self, request: Request, _given: Given) -> Response:
        """Send a file, or the part that Range asks for; with its digest where that is known."""
        number, _ = await self._stages(request)
        name = request.path_params["name"]
        found = await self._backend.thread(partial(received.file_of, self._home, number, name))
        if found is None:
            raise Problem(404, f"there is no file {name[:200]!r} in {number}", f"see /api/v1/results/{number}/files")
        path, digest = found
        headers = dict(_FILE_HEADERS)
        if digest:
            headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
        return _Part(path, media_type="application/octet-stream", filename=path.name, headers=headers)

    async def upload(self, request: Request, _given: Given) -> Response:
        """Store the one file of a form."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            way_out = "send it as curl -F file=@FILE does, or with PUT to …/files/NAME"
            raise Problem(400, f"the content type {kind[:80]!r} is no form", way_out)
        number, folder = await self._folder(request)
        with self._room():
            return _stored(number, folder, await uploads.receive_form(request, folder))

    async def put(self, request: Request, _given: Given) -> Response:
        """Store the body as a file."""
        number, folder = await self._folder(request)
        with self._room():
            return _stored(number, folder, await uploads.receive_raw(request, folder, request.path_params["name"]))

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Count an upload as long as it goes on; raises Problem when there are too many."""
        if self._uploads >= _MOST_UPLOADS:
            what = f"{self._uploads} uploads go on, which is the most at once"
            raise Problem(503, what, "send it again later", headers={"Retry-After": "5", "Connection": "close"})
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def _stages(self, request: Request) -> tuple[str, list[Path]]:
        return await self._backend.thread(partial(self._found, request.path_params["id"]))

    async def _folder(self, request: Request) -> tuple[str, Path]:
        """The run folder that a file goes to."""
        number, stages = await self._stages(request)
        wanted = request.path_params.get("stage")
        found = [folder for folder in stages if wanted in (None, folder.name)]
        if len(found) == 1:
            return number, found[0]
        if wanted is not None:
            raise Problem(404, f"there is no stage {wanted[:80]!r}", f"there are {_names(stages)}")
        way_out = f"name one: POST /api/v1/results/{number}/STAGE/files"
        raise Problem(409, f"{number} has {len(found)} stages: {_names(found)}", way_out)

    def _found(self, number: str) -> tuple[str, list[Path]]:
        """The stages of a task, named by its id or by that of a run that went on with it."""
        stages = received.stages_of(self._home, number)
        if not stages and is_valid_run_id(number):
            run = self._backend.instance.get_run_by_id(number)
            task = task_id_of(self._backend.instance, run) if run else None
            number, stages = (task, received.stages_of(self._home, task)) if task else (number, [])
        if not stages:
            raise Problem(404, f"there is no result {number[:80]!r}", "GET /api/v1/results lists them")
        return number, stages

    def _receive(self, envelope: Envelope) -> bool:
        number = envelope.task_id.partition("/")[0]
        try:
            if self._is_task(number):
                if received.is_there(self._home, envelope):
                    return False
                what = f"{number} is a task of this service, which makes its results itself"
                raise Problem(409, what, "send a result of elsewhere under an id of its own")
            return received.receive(self._home, envelope)
        except NotStored as error:
            raise uploads.not_stored(error) from None

    def _is_task(self, number: str) -> bool:
        """Whether an id is that of a task here: a run, or accepted, or on its way from the one to the other."""
        there, intake = self._backend.instance.has_run, self._backend.intake
        return is_valid_run_id(number) and (there(number) or intake.get(number) is not None or there(number))

    def _page(self, cursor: str, size: int) -> shapes.ResultPage:
        names = sorted(entry.name for entry in _scan(self._home.results) if entry.name > cursor)
        found: list[shapes.ResultEntry] = []
        for name in names:
            stages = received.stages_of(self._home, name)
            if len(found) > size:
                break
            changed = max(map(_changed, stages), default=None)
            if changed is not None:
                found.append({"id": name, "stages": [folder.name for folder in stages], "changed": changed})
        return {"results": found[:size], "cursor": found[size - 1]["id"] if len(found) > size else None}


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if received.is_plain(entry.name)]
    except FileNotFoundError:
        return []


def _changed(folder: Path) -> float:
    """When a result changed, in seconds since the epoch; 0 for one that is replaced just now."""
    try:
        return (folder / RESPONSES).stat().st_mtime
    except FileNotFoundError:
        return 0.0


class _Part(FileResponse):
    """A file, or the part that Range asks for; what is wrong with that is a problem like any other."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader as error:
            raise Problem(400, f"Range {http_range[:80]!r}: {error.content}", "write bytes=FIRST-LAST") from None
        except RangeNotSatisfiable as error:
            what = f"Range {http_range[:80]!r} lies beyond the {error.max_size} bytes that there are"
            raise Problem(416, what, "ask for less", headers={"Content-Range": f"bytes */{error.max_size}"}) from None


async def _joined(number: str, paths: dict[str, Path], root: Path) -> AsyncIterator[bytes]:
    """One JSON text of several, without reading any of them as a whole."""
    yield f'{{"id": {json.dumps(number)}, "stages": {{'.encode()
    for place, (stage, path) in enumerate(paths.items()):
        yield f"{', ' if place else ''}{json.dumps(stage)}: ".encode()
        with open_inside(path, root) as file:
            while block := await asyncio.to_thread(file.read, _BLOCK):
                yield block
    yield b"}}"


def _stored(number: str, folder: Path, arrived: received.Arrived) -> Response:
    name = f"{folder.name}/artifacts/{arrived.name}"
    told: shapes.Stored = {"ok": True, "id": number, "name": name, "size": arrived.size, "sha256": arrived.sha256}
    where = f"/api/v1/results/{number}/files/{name}"
    return JSONResponse(told, 201 if arrived.new else 200, headers={"Location": where})


def _measured(path: Path) -> tuple[int, str]:
    return path.stat().st_size, file_digest(path).removeprefix("sha256:")


def _names(stages: list[Path]) -> str:
    return ", ".join(folder.name for folder in stages)
