"""`/api/v1/pull/{worker}/artifacts`: the artifact store, for machines that reach nothing but the service.

A machine reads blobs by their digests and documents of work that it was given, and writes blobs, whose digest is
checked, and documents of attempts that nobody has given up.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator
from functools import cache, partial
from pathlib import Path
from typing import IO

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from executors.remote.document import JOB, RESULT, STATE, RemoteResult, State
from executors.remote.store import Store, StoreError
from mloc_dagster.client import shapes
from mloc_dagster.files.atomic import locked
from mloc_dagster.placement.pull.desk import Desk, PullOrder
from mloc_dagster.placement.workers.declared import fleet_of
from mloc_dagster.placement.workers.outbound import Registry
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.endpoint import Endpoint, Given, Parameter
from mloc_dagster.service.problems import Problem
from mloc_dagster.service.pulling import body_of, given_up, worker_of
from mloc_dagster.service.tokens import WORKER
from mloc_dagster.spec import SpecError

_BLOB = re.compile(r"blobs/(?P<two>[0-9a-f]{2})/(?P<digest>(?P=two)[0-9a-f]{62})")
_FIRST = re.compile(r"bytes=(\d+)-")
_BLOCK = 1 << 18
_MOST_BYTES = 256 << 20
"""Of one blob: a piece of a file has 32 MiB at most, a listing of very many files may be larger."""
_PLACE = (
    Parameter("offset", "The place of its first byte.", "integer", 0, 0, _MOST_BYTES),
    Parameter("size", "Bytes of the whole.", "integer", 0, 0, _MOST_BYTES),
)


class Artifacts:
    """The endpoints of the artifact store."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._desk, self._registry = Desk(backend.home), Registry(backend.home)
        self._halves = backend.home.root / "pull" / "halves"

    def endpoints(self) -> list[Endpoint]:
        """Return them."""
        path, scope = "/pull/{worker}/artifacts/{key:path}", WORKER
        return [
            Endpoint("GET", path, self.read, "Something of the artifact store, or with Range the end of it.", None,
                     scope=scope, media="application/octet-stream", problems=(400, 404, 410, 416, 422, 503),
                     also={206: "The part."}),
            Endpoint("PUT", path, self.write, "Put something, or a part of it, into the artifact store.",
                     shapes.Arrival, scope=scope, query=_PLACE, takes=("application/octet-stream",),
                     problems=(400, 404, 409, 410, 413, 422, 503)),
        ]  # fmt: skip

    async def read(self, request: Request, _given: Given) -> Response:
        """Send it, block by block."""
        key, name = request.path_params["key"], worker_of(request)
        if _BLOB.fullmatch(key) is None:
            await self._backend.thread(partial(self._require, key, name, (JOB, STATE)))
        size, file = await self._backend.thread(partial(self._opened, key, name))
        first = _first(request, size)
        headers = {"Content-Length": str(size - first), "Cache-Control": "no-store"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
        if request.method == "HEAD":
            await asyncio.to_thread(file.close)
            return Response(headers=headers, media_type="application/octet-stream")
        blocks = _blocks(file, first)
        return StreamingResponse(blocks, 206 if first else 200, headers, media_type="application/octet-stream")

    async def write(self, request: Request, given: Given) -> Response:
        """Take a part in; once all is there, it is checked and stored."""
        key, name = request.path_params["key"], worker_of(request)
        block = await body_of(request)
        offset, size = given.integer("offset"), given.integer("size") or len(block)
        blob = _BLOB.fullmatch(key)
        if blob is None:
            work = partial(self._write_document, key, name, block)
        else:
            work = partial(self._write_blob, blob["digest"], name, offset, size, block)
        return JSONResponse({"arrived": await self._backend.thread(work)})

    def _opened(self, key: str, name: str) -> tuple[int, IO[bytes]]:
        self._registry.heard(name)
        found = _kept(self._store, key)
        if found is None:
            raise Problem(404, f"the artifact store holds no {key[:200]}", "it may have been removed: mloc gc")
        return found

    def _write_document(self, key: str, name: str, block: bytes) -> int:
        kind = self._require(key, name, (RESULT, STATE))
        try:
            document = (RemoteResult if kind == RESULT else State).model_validate_json(block)
        except ValueError as error:
            raise Problem(
                422, f"{key[:200]} is no such document: {str(error)[:200]}", "send it as it was made"
            ) from None
        self._often(lambda store: store.write(key, document))
        return len(block)

    def _write_blob(self, digest: str, name: str, offset: int, size: int, block: bytes) -> int:
        """Add to what has come of a blob; returns how much there is."""
        self._registry.heard(name)
        if not any(self._desk.ending(order.attempt) is None for order in self._desk.orders(name)):
            raise given_up("of this upload")
        self._halves.mkdir(parents=True, exist_ok=True)
        half = self._halves / digest
        half.touch()
        with locked(half), half.open("r+b") as file:
            there = file.seek(0, os.SEEK_END)
            if offset > there:
                raise Problem(409, f"{there} bytes are there, this part begins at {offset}", "send what is missing")
            if offset + len(block) > size:
                raise Problem(400, f"{offset + len(block)} bytes are more than the {size} announced", "send it again")
            file.write(block[there - offset :])
            there = file.tell()
            if there < size:
                return there
        self._finish(half, digest)
        return size

    def _finish(self, half: Path, digest: str) -> None:
        data = half.read_bytes()
        half.unlink(missing_ok=True)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise Problem(400, f"what came has the SHA-256 {found}, not {digest}", "send it again from its beginning")
        self._often(lambda store: store.keep(data))

    def _require(self, key: str, name: str, kinds: tuple[str, ...]) -> str:
        """Return the kind of a document of work that a worker was given and still holds; raises Problem."""
        self._registry.heard(name)
        folder, _, kind = key.rpartition("/")
        if kind in kinds:
            for order in self._desk.orders(name):
                named = folder == (_work_of(order) if kind == STATE else order.key)
                if named and self._desk.ending(order.attempt) is None:
                    return kind
        raise given_up(key)

    def _often(self, action) -> None:
        try:
            action(self._store)
        except StoreError as error:
            raise Problem(503, str(error), "see to the artifact store; the worker tries again") from None

    @property
    def _store(self) -> Store:
        try:
            return _store(fleet_of(self._backend.home).artifacts)
        except (SpecError, StoreError) as error:
            raise Problem(503, str(error), "mend workers.yaml where the service is") from None


@cache
def _store(url: str) -> Store:
    return Store(url)


def _work_of(order: PullOrder) -> str:
    """Where the state of all attempts at the same work is: `jobs/<work>`."""
    return order.job.rpartition("/")[0]


def _kept(store: Store, key: str) -> tuple[int, IO[bytes]] | None:
    try:
        return store.open(key, touch=True)
    except StoreError as error:
        raise Problem(503, str(error), "see to the artifact store; the worker tries again") from None


def _first(request: Request, size: int) -> int:
    given = request.headers.get("range")
    if given is None:
        return 0
    found = _FIRST.fullmatch(given)
    if found is None:
        raise Problem(400, f"Range {given[:80]!r} is not taken", "write bytes=FIRST-")
    if int(found[1]) >= size:
        raise Problem(416, f"there are {size} bytes", "ask for less", headers={"Content-Range": f"bytes */{size}"})
    return int(found[1])


async def _blocks(file: IO[bytes], first: int) -> AsyncIterator[bytes]:
    try:
        await asyncio.to_thread(file.seek, first)
        while block := await asyncio.to_thread(file.read, _BLOCK):
            yield block
    finally:
        await asyncio.to_thread(file.close)
