"""Bytes on their way: kept in files of this machine until they have arrived elsewhere, so many at most.

A spool is a folder of segments, each called after the place of its first byte. One process appends, another reads from
where it likes and drops what has arrived; both may be killed at any moment.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

SEGMENT = 1 << 20
"""Bytes."""
_FULL_SECONDS = 0.2


class Spool:
    """One folder. `most` is how many bytes may wait in it: whoever writes more waits, too."""

    def __init__(self, folder: Path, most: int = 0) -> None:
        self._folder, self._most = folder, most
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes) -> None:
        """Append, once there is room."""
        while self._most and self.end - self.first > self._most:
            time.sleep(_FULL_SECONDS)
        starts = self._starts()
        last = starts[-1] if starts else 0
        size = self._size(last)
        path = self._path(last + size if size >= SEGMENT else last)
        with path.open("ab") as file:
            file.write(data)

    def read(self, offset: int, most: int = SEGMENT) -> bytes:
        """Return bytes from a place on, within one segment; empty when there are none yet."""
        start = max((one for one in self._starts() if one <= offset), default=None)
        if start is None:
            return b""
        with suppress(FileNotFoundError), self._path(start).open("rb") as file:
            file.seek(offset - start)
            return file.read(most)
        return b""

    def drop(self, offset: int) -> None:
        """Forget segments that lie wholly before a place; the last one stays, so that the count goes on."""
        starts = self._starts()
        for start, following in pairwise(starts):
            if following <= offset:
                self._path(start).unlink(missing_ok=True)

    @property
    def first(self) -> int:
        """The place of the first byte that is here."""
        return min(self._starts(), default=0)

    @property
    def end(self) -> int:
        """The place behind the last byte."""
        last = max(self._starts(), default=0)
        return last + self._size(last)

    def _starts(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self._folder) if name.isdecimal())

    def _size(self, start: int) -> int:
        try:
            return self._path(start).stat().st_size
        except FileNotFoundError:
            return 0

    def _path(self, start: int) -> Path:
        return self._folder / f"{start:020d}"
