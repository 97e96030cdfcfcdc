"""Results and files that come from elsewhere, and the files of any result: nothing outside of the results folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from mloc_dagster.client.shapes import File
from mloc_dagster.files.atomic import half_file, locked, sweep, sync_folder
from mloc_dagster.files.links import inside
from mloc_dagster.store.digests import file_digest
from mloc_dagster.store.home import Home
from mloc_dagster.store.manifest import declared_names, known_digests, write_manifest
from mloc_dagster.store.results import RESPONSES, Envelope, read_envelope, write_envelope

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,199}")
"""A plain name of a file or a stage, or an id."""
_MOST_FILES = 10_000


class NotStored(Exception):
    """What cannot be stored, what kind of fault that is, and the way out."""

    def __init__(self, kind: Literal["bad", "taken", "too_large"], what: str, way_out: str) -> None:
        super().__init__(what)
        self.kind, self.way_out = kind, way_out


def is_plain(name: str) -> bool:
    """Whether a name can be that of an id, a stage or a file: no path, nothing hidden."""
    return NAME.fullmatch(name) is not None


def stages_of(home: Home, number: str) -> list[Path]:
    """Return the run folders of a task that hold a result, sorted by name."""
    if not is_plain(number):
        return []
    found = [path for path in (home.results / number).glob(f"*/{RESPONSES}") if is_plain(path.parent.name)]
    return sorted(path.parent for path in found if inside(path, home.results))


def files_of(home: Home, number: str, most: int = _MOST_FILES) -> tuple[list[File], bool]:
    """Return the files of a result, names relative to its folder, and whether that is all of them."""
    found: list[File] = []
    root = home.results / number
    if not is_plain(number) or not root.is_dir():
        return [], True
    known = _digests(root)
    for name, path in _walk(root):
        if len(found) >= most:
            return found, False
        try:
            stat = path.stat()
        except FileNotFoundError:  # it is replaced just now
            continue
        told: File = {"name": name, "size": stat.st_size, "modified": stat.st_mtime}
        if name in known:
            told["sha256"] = known[name]
        found.append(told)
    return found, True


def file_of(home: Home, number: str, name: str) -> tuple[Path, str | None] | None:
    """Return a file of a result and its SHA-256 where the manifest tells it; None for what is no such file.

    Links are followed only where they lead into the results folder.
    """
    root = home.results / number
    parts = name.split("/")
    if not is_plain(number) or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        return None
    real = inside(root.joinpath(*parts), home.results)
    if real is None or not real.is_file():
        return None
    return real, _digests(root, parts[0]).get(name)


def receive(home: Home, envelope: Envelope) -> bool:
    """Store a result that was made elsewhere; returns False when it is there already. Raises NotStored."""
    folder = folder_of(home, envelope)
    folder.mkdir(parents=True, exist_ok=True)
    if inside(folder, home.results) is None:
        raise NotStored("bad", f"{folder.name!r} is a link that leads elsewhere", "remove it, or name another stage")
    with locked(folder):
        new = not (folder / RESPONSES).exists()
        if new:
            write_envelope(folder, envelope)
        elif not is_there(home, envelope):
            what = f"there is another result of {folder.parent.name}/{folder.name} already"
            raise NotStored("taken", what, "send it under another task_id")
        if new or not (folder / "manifest.json").exists():  # whoever stored it may have been killed before that
            write_manifest(folder, f"{folder.parent.name}/{folder.name}", [])
    return new


def folder_of(home: Home, envelope: Envelope) -> Path:
    """Return the run folder that a result belongs to; raises NotStored for names that are none."""
    number, _, stage = envelope.task_id.partition("/")
    stage = stage or envelope.stage
    try:
        if is_plain(number) and is_plain(stage):
            return home.run_folder(number, stage)
    except ValueError:
        pass
    what = f"task_id {envelope.task_id[:80]!r} is no `<id>/<stage>` of plain names"
    raise NotStored("bad", what, "use letters, digits, dots, dashes and underscores")


def is_there(home: Home, envelope: Envelope) -> bool:
    """Whether this very result is stored; raises NotStored for names that are none."""
    path = folder_of(home, envelope) / RESPONSES
    try:
        return inside(path, home.results) is not None and read_envelope(path) == envelope
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Arrived:
    """A file that was stored, or was there already; `size` in bytes."""

    name: str
    size: int
    sha256: str
    new: bool


class Arriving:
    """A file on its way into `artifacts/` of a run folder: block by block, whole at the end or not at all."""

    def __init__(
        self, folder: Path, name: str, most: int, sizes: tuple[int, int] | None = None, expected: str | None = None
    ) -> None:
        """`sizes`: how small and how large it may be, `expected` its SHA-256 in hex, where that is known beforehand:
        then another file of the name is refused before it comes. Raises NotStored for a name that is none."""
        if not is_plain(name):
            raise NotStored("bad", f"{name[:80]!r} is no plain file name", "send it without folders, and not hidden")
        self._folder, self._name, self._most, self._sizes = folder, name, most, sizes
        self._path = folder / "artifacts" / name
        self._expected = expected
        self._digest, self._size = hashlib.sha256(), 0
        self._file: IO[bytes] | None = None
        self._half = ""

    def __enter__(self) -> Arriving:
        artifacts = self._path.parent
        if artifacts.is_symlink() or self._path.is_symlink():
            raise NotStored("bad", f"{artifacts.name}/{self._name} is a link", "remove it where the results are")
        artifacts.mkdir(parents=True, exist_ok=True)
        if self._path.is_file() and self._is_another():
            raise self._taken()
        handle, self._half = half_file(self._path)
        self._file = os.fdopen(handle, "wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        Path(self._half).unlink(missing_ok=True)

    def write(self, block: bytes) -> None:
        """Add a block; raises NotStored when it is too much."""
        assert self._file is not None
        self._size += len(block)
        if self._size > self._most:
            what = f"the file is larger than {self._most >> 20} MiB"
            raise NotStored("too_large", what, "raise MLOC_UPLOAD_MIB of the service")
        self._digest.update(block)
        self._file.write(block)

    def finish(self, expected: str | None) -> Arrived:
        """Put the file in its place; raises NotStored for another digest than expected, or another file of the name."""
        assert self._file is not None
        found = self._digest.hexdigest()
        if expected is not None and found != expected:
            raise NotStored("bad", f"what came has the SHA-256 {found}, not {expected}", "send it again")
        self._file.flush()
        os.fsync(self._file.fileno())
        os.chmod(self._half, 0o644)
        with locked(self._folder):  # so that no two manifests are made at once
            new = self._linked(found)
            if new or f"artifacts/{self._name}" not in known_digests(self._folder):
                task_id = read_envelope(self._folder / RESPONSES).task_id
                write_manifest(self._folder, task_id, declared_names(self._folder))
        return Arrived(self._name, self._size, found, new)

    def _is_another(self) -> bool:
        """Whether what is there cannot be what will come."""
        if self._sizes is not None and not self._sizes[0] <= self._path.stat().st_size <= self._sizes[1]:
            return True
        there = known_digests(self._folder).get(f"artifacts/{self._name}")
        return None not in (there, self._expected) and there != self._expected

    def _linked(self, digest: str) -> bool:
        """Give the file its name; returns False when it is there already."""
        sweep(self._path.parent)  # what killed ones have left
        try:
            os.link(self._half, self._path)
        except FileExistsError:
            if self._path.is_symlink() or file_digest(self._path) != f"sha256:{digest}":
                raise self._taken() from None
            return False
        sync_folder(self._path.parent)
        return True

    def _taken(self) -> NotStored:
        what = f"there is another file {self._name!r} of this result already"
        return NotStored("taken", what, "send it under another name")


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Files below a folder, sorted; hidden ones are being made or replaced."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix(), path


def _digests(root: Path, stage: str | None = None) -> dict[str, str]:
    """SHA-256 by name, as the manifests tell them."""
    folders = [root / stage] if stage else [path.parent for path in root.glob("*/manifest.json")]
    return {f"{one.name}/{path}": digest for one in folders for path, digest in known_digests(one).items()}
