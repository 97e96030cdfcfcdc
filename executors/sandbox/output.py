"""What a command writes: kept up to a limit, always read on, so that it never waits for a full pipe."""

from __future__ import annotations

import threading
from typing import IO

FLOOD = 256
"""A command that writes this many times what is kept is ended."""


class Output:
    """Reads one pipe to its end in a thread of its own."""

    def __init__(self, pipe: IO[bytes], keep: int) -> None:
        self._pipe = pipe
        self._keep = keep
        self._kept = bytearray()
        self._seen = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def flooded(self) -> bool:
        """So much was written that the command should not go on."""
        return self._seen > self._keep * FLOOD

    def text(self, wait_seconds: float = 5.0) -> str:
        """What was kept, with a note on what was cut."""
        self._thread.join(wait_seconds)
        text = bytes(self._kept).decode("utf-8", errors="replace")
        cut = self._seen - len(self._kept)
        return f"{text}\n[{cut} more bytes were cut: only the first {self._keep} are kept]" if cut > 0 else text

    def _read(self) -> None:
        try:
            while chunk := self._pipe.read1(65536):  # pyright: ignore[reportAttributeAccessIssue]
                self._seen += len(chunk)
                self._kept += chunk[: max(0, self._keep - len(self._kept))]
        except (OSError, ValueError):
            return
