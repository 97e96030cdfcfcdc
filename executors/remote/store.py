"""An artifact store: content by digest, behind an fsspec address that all machines can reach.

`blobs/<2>/<sha256>` are pieces of files, at most 32 MiB each, and listings; `jobs/…` are documents. A transfer that
breaks off goes on from the pieces that arrived, and each piece is verified by its digest when it is read.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

PIECE = 32 << 20
"""Bytes."""
TOUCH_SECONDS = 6 * 3600.0
"""A blob that is found in the store is touched when that was not done for so long; see `retention.artifacts`."""
_TRIES = 5
_LONGEST_PAUSE = 5.0
_PARALLEL = 8
_DOCUMENT = TypeVar("_DOCUMENT", bound=BaseModel)


class StoreError(Exception):
    """The store cannot be used; the message says which address, why, and what to do."""


class Unusable(StoreError):
    """What the store holds is gone, damaged or of another version: to do without it may help, to ask again does not."""


class Entry(BaseModel):
    """One file of a tree and the digests of its pieces."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    executable: bool = False
    pieces: tuple[str, ...]


class Tree(BaseModel):
    """The files below a folder, sorted by path."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[Entry, ...]


@dataclass(frozen=True)
class Kept:
    """Something in a store: its key, its size in bytes, and how many seconds ago it was written or touched."""

    key: str
    size: int
    age: float


class Store:
    """One store. Every method raises StoreError when the store fails for good; failures are borne for `patience`
    seconds, and five times at least. `files`: what speaks to it, where that is no file system of fsspec's."""

    def __init__(self, url: str, *, files: Any = None, patience: float = 0.0) -> None:
        self.url, self._patience = url.rstrip("/"), patience
        self._files, self._root = (files, "") if files is not None else _open(self.url)
        self._local = "file" in self._protocols()
        self._there: dict[str, float] = {}
        self._hashed: dict[tuple[str, int, int], Entry] = {}

    def push(self, paths: Mapping[str, Path]) -> str:
        """Store files, each under its path in the tree, and return the tree's digest; only what is new is sent.

        Raises FileNotFoundError when one has vanished meanwhile.
        """
        entries = tuple(self._push_file(name, paths[name]) for name in sorted(paths))
        listing = Tree(files=entries).model_dump_json().encode()
        return self._push_piece(listing)

    def tree(self, digest: str) -> Tree:
        """Return a listing."""
        return self._parsed(self.piece(digest), f"the listing {digest[:12]}", Tree)

    def piece(self, digest: str) -> bytes:
        """Return a piece, verified; raises Unusable when it is missing or damaged."""
        blob = self._blob(digest)
        data = self._often(lambda: _unless_missing(lambda: self._files.cat_file(blob)), f"blob {digest[:12]}")
        if data is None:
            raise Unusable(
                f"the artifact store {self.url} holds no blob {digest} any more\n"
                "Have lifecycle rules of the bucket keep what is below blobs/ and jobs/; `mloc gc` knows what may go"
            )
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise Unusable(
                f"{self.url} is damaged: the blob {digest} holds other bytes ({found[:12]}…)\n"
                "Remove that blob; the next attempt sends it again"
            )
        return data

    def pieces(self, digests: Iterable[str]) -> Iterator[bytes]:
        """Yield pieces in order, some of them fetched ahead."""
        wanted = list(digests)
        if len(wanted) == 1:
            yield self.piece(wanted[0])
            return
        with ThreadPoolExecutor(2) as pool:
            ahead = [pool.submit(self.piece, digest) for digest in wanted[:2]]
            for number in range(len(wanted)):
                yield ahead.pop(0).result()
                if number + 2 < len(wanted):
                    ahead.append(pool.submit(self.piece, wanted[number + 2]))

    def write(self, key: str, document: BaseModel) -> None:
        """Store a document under a name, in place of the one before."""
        self._put(f"{self._root}/{key}", document.model_dump_json().encode(), key)

    def read(self, key: str, kind: type[_DOCUMENT]) -> _DOCUMENT | None:
        """Return a document, or None when there is none; raises Unusable for one of another version."""
        data = self._often(lambda: _unless_missing(lambda: self._files.cat_file(f"{self._root}/{key}")), key)
        return None if data is None else self._parsed(data, key, kind)

    def open(self, key: str, *, touch: bool = False) -> tuple[int, IO[bytes]] | None:
        """Open what is stored under a key, to be read from anywhere; returns its size, too. None: there is none."""
        path = f"{self._root}/{key}"
        look = self._touched if touch else self._files.info
        info = self._often(lambda: _unless_missing(lambda: look(path)), key)
        return None if info is None else (info["size"], self._often(lambda: self._files.open(path, "rb"), key))

    def keep(self, data: bytes) -> str:
        """Store a piece and return its digest."""
        return self._push_piece(data)

    def all(self, prefix: str) -> list[Kept]:
        """Return everything below a prefix."""
        found = self._often(lambda: self._files.find(f"{self._root}/{prefix}", detail=True), prefix)
        return [Kept(path.removeprefix(f"{self._root}/"), info["size"], _age(info)) for path, info in found.items()]

    def look(self, key: str) -> Kept | None:
        """Return what is known of a key, or None when there is nothing."""
        info = self._often(lambda: _unless_missing(lambda: self._files.info(f"{self._root}/{key}")), key)
        return None if info is None else Kept(key, info["size"], _age(info))

    def remove(self, keys: Sequence[str]) -> None:
        """Remove what is stored under these keys; what is gone already is no fault."""
        for key in keys:
            self._often(lambda key=key: _unless_missing(lambda: self._files.rm_file(f"{self._root}/{key}")), key)

    def tree_or_none(self, digest: str) -> Tree | None:
        """Return a listing, or None when it is not there."""
        return self.tree(digest) if self.look(f"blobs/{digest[:2]}/{digest}") else None

    def names(self, key: str) -> list[str]:
        """Names directly below a key, sorted."""
        found = self._often(lambda: _unless_missing(lambda: self._files.ls(f"{self._root}/{key}", detail=False)), key)
        return sorted(PurePosixPath(name).name for name in found or ())

    def _parsed(self, data: bytes, what: str, kind: type[_DOCUMENT]) -> _DOCUMENT:
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
            raise Unusable(
                f"{self.url}: {what} is not as this version of MLOC writes it ({why})\n"
                "Have the image and the control plane of the same version"
            ) from None

    def _push_file(self, name: str, path: Path) -> Entry:
        stat = path.stat()
        state = (str(path), stat.st_size, stat.st_mtime_ns)
        if state not in self._hashed:
            with path.open("rb") as file:
                digests = tuple(self._push_pieces(file))
                size = file.tell()
            self._hashed[state] = Entry(path=name, size=size, executable=os.access(path, os.X_OK), pieces=digests)
        return self._hashed[state].model_copy(update={"path": name})

    def _push_pieces(self, file: Any) -> Iterator[str]:
        sending: deque[Future[str]] = deque()
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for piece in _pieces(file):
                sending.append(pool.submit(self._push_piece, piece))
                if len(sending) >= _PARALLEL:  # no more of the file in memory
                    yield sending.popleft().result()
            while sending:
                yield sending.popleft().result()

    def _push_piece(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if time.monotonic() - self._there.get(digest, -TOUCH_SECONDS) < TOUCH_SECONDS:
            return digest
        blob = self._blob(digest)
        info = self._often(lambda: _unless_missing(lambda: self._touched(blob)), f"blob {digest[:12]}")
        if info is None or info["size"] != len(data):
            self._put(blob, data, f"blob {digest[:12]}")
        self._there[digest] = time.monotonic()
        return digest

    def _touched(self, blob: str) -> dict[str, Any]:
        """What is known of a blob that is there; it is touched, so that nobody removes it before it is named."""
        info = self._files.info(blob)
        if _age(info) > TOUCH_SECONDS and self._local:
            os.utime(blob)
        elif _age(info) > TOUCH_SECONDS:
            self._files.cp_file(blob, blob, MetadataDirective="REPLACE")
        return info

    def _put(self, path: str, data: bytes, what: str) -> None:
        def put() -> None:
            if not self._local:  # object stores replace as a whole
                self._files.pipe_file(path, data)
                return
            aside = f"{path}.{uuid.uuid4().hex[:8]}.half"
            self._files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
            self._files.pipe_file(aside, data)
            os.replace(aside, path)

        self._often(put, what)

    def _blob(self, digest: str) -> str:
        return f"{self._root}/blobs/{digest[:2]}/{digest}"

    def _often(self, action: Any, what: str) -> Any:
        until = time.monotonic() + self._patience
        for attempt in count(1):
            try:
                return action()
            except (PermissionError, FileNotFoundError) as error:
                raise StoreError(self._told(what, error)) from None
            except Exception as error:  # each file system raises its own kinds
                if attempt >= _TRIES and time.monotonic() > until:
                    raise StoreError(self._told(what, error)) from None
                time.sleep(min(_LONGEST_PAUSE, 0.2 * 2**attempt))
        raise AssertionError

    def _told(self, what: str, error: Exception) -> str:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        return f"the artifact store {self.url} fails at {what}: {reason}\nCheck its address and its credentials"

    def _protocols(self) -> tuple[str, ...]:
        protocol = self._files.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def files_below(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by relative path; a link counts as what it leads to."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = url.partition("://")[0] if "://" in url else ""
    try:
        files, root = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError:
        package = "'mloc-dagster[s3]'" if scheme == "s3" else f"'fsspec[{scheme}]'"
        raise StoreError(f"the artifact store {url} needs a package: pip install {package}") from None
    except ValueError as error:
        raise StoreError(f"{url} is no artifact store: {error}; write file:///… or s3://bucket/prefix") from None
    return files, str(root).rstrip("/")


def _age(info: Mapping[str, Any]) -> float:
    """Seconds since a file was written; 0 where the file system does not tell, or it was touched just now."""
    found = next((info[name] for name in ("mtime", "LastModified", "last_modified", "updated") if name in info), None)
    if isinstance(found, datetime):
        found = found.timestamp()
    return max(0.0, time.time() - float(found)) if isinstance(found, int | float) else 0.0


def _pieces(file: Any) -> Iterator[bytes]:
    """The pieces of a file; an empty one has none."""
    while piece := file.read(PIECE):
        yield piece


def _unless_missing(action: Any) -> Any:
    try:
        return action()
    except FileNotFoundError:
        return None
