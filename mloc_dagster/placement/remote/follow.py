"""Follows an attempt elsewhere to its end: its log to a file, its progress to whoever asks; bears disconnects."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import BinaryIO

from executors.remote import messages
from executors.remote.messages import Reader
from mloc_dagster.placement.remote.carrier import Carried, Ending, Sign, Unreachable
from mloc_dagster.spec.base import Json

_AGAIN_SECONDS = 1.0


class Follower:
    """A thread that reads what an attempt says. `take` gives the messages that came since it was asked last."""

    def __init__(self, carried: Carried, log: Path) -> None:
        self._carried, self._log = carried, log
        self._lock = threading.Lock()
        self._told: list[tuple[str, Json]] = []
        self._left = threading.Event()
        self.ending: Ending | None = None
        self.failure: Exception | None = None
        """Why it cannot be followed, if it cannot."""
        self.unreachable = ""
        """Why the other side does not answer now, if it does not."""
        self._thread = threading.Thread(target=self._follow, daemon=True, name="follow")
        self._thread.start()

    def take(self) -> list[tuple[str, Json]]:
        """Return new messages."""
        with self._lock:
            told, self._told = self._told, []
        return told

    def over(self, seconds: float) -> bool:
        """Wait a moment; returns whether the attempt has ended and all that it said was read."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def leave(self) -> None:
        """Stop to follow at the next pause."""
        self._left.set()

    def _follow(self) -> None:
        try:
            self._read()
        except Exception as error:  # whoever asks is told
            self.failure = error

    def _read(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as file:
            reader = Reader(file.write, self._note)
            while self.ending is None and not self._left.is_set():
                self._read_once(reader, file)
            reader.close()

    def _read_once(self, reader: Reader, file: BinaryIO) -> None:
        """Read the stream; one that was broken off is gone on with by the next call."""
        try:
            for block in self._carried.stream():
                self.unreachable = ""
                if isinstance(block, Sign):
                    self._note(messages.NOTE if block.words else messages.BEAT, block.words)
                    continue
                reader.feed(block)
                file.flush()
            self.ending = self._carried.ending()
            self.unreachable = ""
        except Unreachable as error:
            self.unreachable = str(error)
        if self.ending is None:  # the connection ended, not the work
            time.sleep(_AGAIN_SECONDS)

    def _note(self, kind: str, value: Json) -> None:
        with self._lock:
            self._told.append((kind, value))
