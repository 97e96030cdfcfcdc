"""Files that come in: a raw body or a form with one file, block by block; memory stays bounded."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from mloc_dagster.service.problems import Problem
from mloc_dagster.store.received import Arrived, Arriving, NotStored

_DEFAULT_MIB = 16_384
_SILENT_SECONDS = 60.0
_BLOCK = 1 << 20
_AROUND = 64 << 10
"""Bytes of a form beside its file."""
_LEAST_RATE = 1024
"""Bytes a second, after the first minute."""
_LONGEST_HEADER = 4096
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]{44}):")
_STATUS = {"bad": 400, "taken": 409, "too_large": 413}
_WAY_OUT = "send it as curl -F file=@FILE does, or as the raw body to …/files/NAME"


def most_bytes() -> int:
    """Return how large a file may be: MLOC_UPLOAD_MIB, 16 GiB where it is not set."""
    text = os.environ.get("MLOC_UPLOAD_MIB", "")
    return (int(text) if text.isdecimal() and int(text) > 0 else _DEFAULT_MIB) << 20


async def receive_raw(request: Request, folder: Path, name: str) -> Arrived:
    """Store the body as a file; raises Problem."""
    expected = expected_digest(request)
    try:
        length = _length(request)
        sizes = None if length is None else (length, length)
        with Arriving(folder, name, most_bytes(), sizes, expected) as arriving:
            async for block in _blocks(request, most_bytes()):
                await asyncio.to_thread(arriving.write, block)
            return await asyncio.to_thread(arriving.finish, expected)
    except NotStored as error:
        raise not_stored(error) from None


async def receive_form(request: Request, folder: Path) -> Arrived:
    """Store the one file of a form; raises Problem."""
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(400, "the form names no boundary", _WAY_OUT)
    expected, length = expected_digest(request), _length(request)
    form = _Form(folder, None if length is None else (length - _AROUND, length), expected)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # pyright: ignore[reportArgumentType]
        async for block in _blocks(request, most_bytes() + _AROUND):
            await asyncio.to_thread(parser.write, block)
        await asyncio.to_thread(parser.finalize)
        return await asyncio.to_thread(form.finish, expected)
    except NotStored as error:
        raise not_stored(error) from None
    except FormParserError as error:
        raise Problem(400, f"the form cannot be read: {str(error)[:200]}", _WAY_OUT) from None
    finally:
        await asyncio.to_thread(form.close)


def expected_digest(request: Request) -> str | None:
    """Return the SHA-256 that a client announces in hex (Repr-Digest or Content-Digest, RFC 9530); raises Problem."""
    given = request.headers.get("repr-digest") or request.headers.get("content-digest")
    if given is None:
        return None
    found = _DIGEST.search(given)
    try:
        return base64.b64decode(found[1], validate=True).hex() if found else _no_digest(given)
    except binascii.Error:
        return _no_digest(given)


def not_stored(error: NotStored) -> Problem:
    """Return the problem of what cannot be stored."""
    headers = {"Connection": "close"} if error.kind == "too_large" else None
    return Problem(_STATUS[error.kind], str(error), error.way_out, headers=headers)


class _Form:
    """What is known of a form while it comes; its one file goes to the disk."""

    def __init__(self, folder: Path, sizes: tuple[int, int] | None, expected: str | None) -> None:
        self._folder, self._sizes, self._expected = folder, sizes, expected
        self._header = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._arriving: Arriving | None = None
        self._writing = False

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
        }

    def finish(self, expected: str | None) -> Arrived:
        if self._arriving is None or self._writing:
            raise Problem(400, "the form holds no whole file", _WAY_OUT)
        return self._arriving.finish(expected)

    def close(self) -> None:
        if self._arriving is not None:
            self._arriving.__exit__(None, None, None)

    def _part_begin(self) -> None:
        self._headers, self._header, self._value = {}, b"", b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = _bounded(self._header + data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = _bounded(self._value + data[start:end])

    def _header_end(self) -> None:
        if len(self._headers) > 20:
            raise Problem(400, "a part of the form has too many headers", _WAY_OUT)
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        given = options.get(b"filename")
        if given is None:
            raise Problem(400, f"the field {field[:80]!r} is no file", _WAY_OUT)
        if self._arriving is not None:
            raise Problem(400, "the form holds more than one file", "send one file a request")
        name = given.decode("utf-8", "replace").replace("\\", "/")
        if name != PurePosixPath(name).name:
            raise Problem(400, f"the file name {name[:80]!r} has folders in it", "send the name alone")
        self._arriving = Arriving(self._folder, name, most_bytes(), self._sizes, self._expected).__enter__()
        self._writing = True

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._arriving is not None
        self._arriving.write(data[start:end])

    def _part_end(self) -> None:
        self._writing = False


async def _blocks(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body in blocks of about 1 MiB; a client that falls silent, or nearly so, is not waited for."""
    length = _length(request)
    if length is not None and length > most:
        raise _too_large(most)
    stream, held, seen, waited = request.stream(), bytearray(), 0, 0.0
    try:
        while True:
            begun = time.monotonic()
            async with asyncio.timeout(_SILENT_SECONDS):
                block = await anext(stream, None)
            if block is None:
                break
            seen, waited = seen + len(block), waited + time.monotonic() - begun
            if seen > most:
                raise _too_large(most)
            if seen < (waited - _SILENT_SECONDS) * _LEAST_RATE:
                raise Problem(408, f"{seen} bytes came in {waited:.0f} s", f"send at least {_LEAST_RATE} a second")
            held += block
            if len(held) >= _BLOCK:
                yield bytes(held)
                held.clear()
    except TimeoutError:
        raise Problem(408, f"nothing came for {_SILENT_SECONDS:.0f} s", "send it again") from None
    except ClientDisconnect:
        raise Problem(400, "the body ended early", "send it again") from None
    if held:
        yield bytes(held)


def _length(request: Request) -> int | None:
    length = request.headers.get("content-length", "")
    return int(length[:20]) if length.isdecimal() else None


def _too_large(most: int) -> Problem:
    what = f"the body is larger than {most >> 20} MiB"
    return Problem(413, what, "raise MLOC_UPLOAD_MIB of the service", headers={"Connection": "close"})


def _bounded(header: bytes) -> bytes:
    if len(header) > _LONGEST_HEADER:
        raise Problem(400, "a header of the form is too long", _WAY_OUT)
    return header


def _no_digest(given: str) -> str:
    raise Problem(400, f"the digest {given[:80]!r} cannot be read", "write Repr-Digest: sha-256=:BASE64:")
