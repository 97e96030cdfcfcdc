"""Trees on this machine, by digest: pulled once, verified, and read by all stages that name them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from executors.remote.store import PIECE, Entry, Store, StoreError, Tree


@dataclass(frozen=True)
class Pruned:
    """A tree of a cache: its size in bytes, and when it was used last, in seconds since the epoch."""

    path: Path
    size: int
    used: float


class NodeCache:
    """Folders `<root>/<tree digest>/`; safe to use from many containers that share the root.

    What it gives is in use, and not pruned, until this process ends. A file that was changed since it was pulled is
    pulled again before the next use.
    """

    def __init__(self, root: Path, store: Store) -> None:
        self._root, self._store = root, store
        self._used: list[int] = []

    def folder(self, digest: str) -> Path:
        """Return the folder of a tree, which is pulled unless it is here whole; it must not be written to."""
        place = self._root / digest
        tree = self._store.tree(digest)
        self._root.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._root / f".{digest}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._fill(lock, tree, self._root / f".{digest}.partial", place)
        except BaseException:
            os.close(lock)
            raise
        self._used.append(lock)
        return place

    def _fill(self, lock: int, tree: Tree, partial: Path, place: Path) -> None:
        """Have a tree there whole, its lock shared with all who use it; one of them pulls it if need be."""
        os.utime(lock)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if _is_there(place, tree, lock):
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_there(place, tree, lock):
            self._pull(tree, partial, place, lock)
        fcntl.flock(lock, fcntl.LOCK_SH)

    def _pull(self, tree: Tree, partial: Path, place: Path, lock: int) -> None:
        for entry in tree.files:
            pull_file(self._store, entry, partial)
        partial.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(_times(partial, tree)).encode(), 0)
        partial.rename(place)

    def close(self) -> None:
        """Use nothing any more."""
        while self._used:
            os.close(self._used.pop())


def prune(root: Path, most: int, *, dry: bool = False) -> list[Pruned]:
    """Remove trees that nobody uses, those that were used last longest ago first, until `most` bytes are left.

    Returns what went, or with `dry` what would.
    """
    trees = sorted((_measured(path) for path in _trees(root)), key=lambda one: one.used)
    left = sum(tree.size for tree in trees)
    gone: list[Pruned] = []
    for tree in trees:
        if left <= most:
            break
        if _removed(root, tree, dry):
            gone.append(tree)
            left -= tree.size
    return gone


def pull_file(store: Store, entry: Entry, folder: Path, *, again: bool = False) -> None:
    """Fetch one file of a tree into a folder, going on from the pieces of it that are there.

    `again`: also in place of a file of that name and size, whose content may be another one.
    """
    target = folder / entry.path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{store.url} holds a listing with the path {entry.path!r}, which leaves its folder")
    if _is_whole(folder, entry) and not again:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{target.name}.half")
    here = _verified(half, entry.pieces)
    with half.open("ab") as file:
        file.truncate(sum(here))
        for piece in store.pieces(entry.pieces[len(here) :]):
            file.write(piece)
        if file.tell() != entry.size:
            raise StoreError(f"{store.url}: {entry.path} has {file.tell()} of {entry.size} bytes; its listing is wrong")
    if entry.executable:
        half.chmod(0o755)
    os.replace(half, target)


def _verified(half: Path, pieces: tuple[str, ...]) -> list[int]:
    """Sizes of the pieces at the beginning of a file that are what they should be."""
    sizes: list[int] = []
    if not half.exists():
        return sizes
    with half.open("rb") as file:
        for digest in pieces:
            data = file.read(PIECE)
            if hashlib.sha256(data).hexdigest() != digest:
                break
            sizes.append(len(data))
    return sizes


def _is_there(place: Path, tree: Tree, lock: int) -> bool:
    """Whether all files are as they were pulled, by size and by the times that the lock's file keeps of them."""
    if not place.is_dir() or not all(_is_whole(place, entry) for entry in tree.files):
        return False
    try:
        return json.loads(os.pread(lock, os.fstat(lock).st_size, 0)) == _times(place, tree)
    except (OSError, ValueError):
        return False


def _times(folder: Path, tree: Tree) -> list[int]:
    return [(folder / entry.path).stat().st_mtime_ns for entry in tree.files]


def _is_whole(folder: Path, entry: Entry) -> bool:
    try:
        return (folder / entry.path).stat().st_size == entry.size
    except OSError:
        return False


def _trees(root: Path) -> Iterator[Path]:
    for path in root.glob("[0-9a-f]*"):
        if path.is_dir() and len(path.name) == 64:
            yield path
    yield from root.glob(".*.partial")


def _measured(path: Path) -> Pruned:
    sizes = (file.stat().st_size for file in path.rglob("*") if file.is_file())
    lock = path.with_name(f".{_digest(path)}.lock")
    try:
        used = lock.stat().st_mtime
    except FileNotFoundError:
        used = path.stat().st_mtime
    return Pruned(path, sum(sizes), used)


def _removed(root: Path, tree: Pruned, dry: bool) -> bool:
    """Remove a tree unless someone uses it."""
    with (root / f".{_digest(tree.path)}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not dry:
            shutil.rmtree(tree.path, ignore_errors=True)
        return True


def _digest(path: Path) -> str:
    return path.name.removeprefix(".").removesuffix(".partial")
