"""Files of one folder, opened part by part so that no link and no `..` leads out of it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from executors.agent.tools.fault import ToolFault

_READ_BYTES = 256 * 1024
WRITE_BYTES = 1024 * 1024
"""Longest file that is written at once."""
_SHOWN_ENTRIES = 200
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Folder:
    """A folder whose content is not to be trusted: code that was run may have left links and pipes in it."""

    root: Path

    def entries(self, path: str) -> list[str]:
        """Return `name`, `name/` for folders and `name -> (a link, not followed)`, sorted."""
        with self._folder(_parts(path)) as handle, os.scandir(handle) as found:
            names = sorted(_shown(entry) for entry in found)
        more = len(names) - _SHOWN_ENTRIES
        return names if more <= 0 else [*names[:_SHOWN_ENTRIES], f"and {more} more"]

    def is_folder(self, path: str) -> bool:
        """Whether a path names a folder here."""
        try:
            with self._folder(_parts(path)):
                return True
        except ToolFault:
            return False

    def read(self, path: str) -> str:
        """Return the text of a file, its first 256 KiB."""
        with self._file(path, os.O_RDONLY | os.O_NONBLOCK) as handle:
            content = os.read(handle, _READ_BYTES)
            while len(content) < _READ_BYTES and (more := os.read(handle, _READ_BYTES - len(content))):
                content += more
        return content.decode("utf-8", errors="replace")

    def whole(self, path: str) -> str:
        """Return all of a file's text; raises ToolFault for one that is longer than 1 MiB, or not UTF-8."""
        with self._file(path, os.O_RDONLY | os.O_NONBLOCK) as handle:
            size = os.fstat(handle).st_size
            if size > WRITE_BYTES:
                raise ToolFault(f"{path!r} has {size} bytes; at most {WRITE_BYTES} can be edited.")
            with os.fdopen(handle, "rb", closefd=False) as file:
                content = file.read(WRITE_BYTES + 1)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ToolFault(f"{path!r} is no UTF-8 text: {error.reason} at byte {error.start}.") from None

    def write(self, path: str, text: str) -> None:
        """Write a file, making the folders on the way."""
        content = text.encode("utf-8", errors="replace")
        if len(content) > WRITE_BYTES:
            raise ToolFault(f"The text has {len(content)} bytes; at most {WRITE_BYTES} are written at once.")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
        with self._file(path, flags) as handle, os.fdopen(handle, "wb", closefd=False) as file:
            file.write(content)

    @contextmanager
    def _file(self, path: str, flags: int) -> Iterator[int]:
        parts = _parts(path)
        if not parts:
            raise ToolFault(f"{path!r} names no file.")
        with self._folder(parts[:-1], make=bool(flags & os.O_CREAT)) as parent:
            handle = _opened(parts[-1], flags & ~os.O_TRUNC, parent, path)
            try:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise ToolFault(f"{path!r} is no plain file.")
                if flags & os.O_TRUNC:
                    os.ftruncate(handle, 0)
                yield handle
            finally:
                os.close(handle)

    @contextmanager
    def _folder(self, parts: tuple[str, ...], *, make: bool = False) -> Iterator[int]:
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK)
        try:
            for part in parts:
                if make:
                    _make(part, handle)
                inner = _opened(part, os.O_RDONLY | os.O_DIRECTORY, handle, "/".join(parts))
                os.close(handle)
                handle = inner
            yield handle
        finally:
            os.close(handle)


def _parts(path: str) -> tuple[str, ...]:
    """The parts below the folder; a leading `/` stands for the folder itself."""
    parts = tuple(part for part in PurePosixPath(path.strip() or ".").parts if part not in ("/", "//", "."))
    if ".." in parts or "\0" in path:
        raise ToolFault(f"{path!r} leaves the work folder; write a path inside it.")
    return parts


def _opened(name: str, flags: int, parent: int, path: str) -> int:
    try:
        return os.open(name, flags | _NO_LINK, 0o644, dir_fd=parent)
    except OSError as error:
        reasons = {
            errno.ENOENT: "is not there",
            errno.ELOOP: "is a link, and links are not followed",
            errno.EISDIR: "is a folder",
            errno.ENXIO: "is no plain file",
        }
        is_link = error.errno == errno.ENOTDIR and stat.S_ISLNK(os.lstat(name, dir_fd=parent).st_mode)
        what = reasons[errno.ELOOP] if is_link else reasons.get(error.errno or 0, error.strerror)
        raise ToolFault(f"{path!r}: {name!r} {what}.") from None


def _make(name: str, parent: int) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return
    except OSError as error:
        raise ToolFault(f"The folder {name!r} cannot be made: {error.strerror}.") from None


def _shown(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return f"{entry.name} (a link, not followed)"
    if entry.is_dir(follow_symlinks=False):
        return f"{entry.name}/"
    return f"{entry.name} ({entry.stat(follow_symlinks=False).st_size} bytes)"
