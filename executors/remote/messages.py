"""Messages between the lines of a log, on one stream.

A message is a line that begins with the record separator (RFC 7464) and is JSON. A line of the log that begins so is
sent as a message itself, so no log can be taken for one.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from mloc_dagster.spec.base import Json

_MARK = b"\x1e"
_LONGEST_LINE = 1 << 16
_PAUSE = threading.Lock()

Kind = str
PROGRESS, BEAT, NOTE, LOG, END = "progress", "beat", "note", "log", "end"


def say(kind: Kind, value: Json = None) -> None:
    """Write a message to standard output."""
    _write(_MARK + json.dumps({"kind": kind, "value": value}).encode() + b"\n")


def say_line(line: bytes) -> None:
    """Write a line of the log, which ends with a line feed."""
    if line.startswith(_MARK):
        say(LOG, line.decode("utf-8", "replace"))
    else:
        _write(line)


@dataclass
class Reader:
    """Takes a stream apart; blocks may end anywhere. `line` gets the log, `message` a kind and a value."""

    line: Callable[[bytes], object]
    message: Callable[[Kind, Json], None]
    _rest: bytes = b""

    def feed(self, block: bytes) -> None:
        """Take the next bytes."""
        *whole, self._rest = (self._rest + block).split(b"\n")
        for line in whole:
            self._take(line + b"\n")
        if len(self._rest) > _LONGEST_LINE and not self._rest.startswith(_MARK):
            self.line(self._rest)
            self._rest = b""

    def close(self) -> None:
        """Take what has no line feed, at the end of the stream."""
        if self._rest:
            self._take(self._rest + b"\n")
        self._rest = b""

    def _take(self, line: bytes) -> None:
        if not line.startswith(_MARK):
            self.line(line)
            return
        try:
            told = json.loads(line[1:])
            kind, value = told["kind"], told["value"]
        except (ValueError, KeyError, TypeError):
            self.line(line)
            return
        if kind == LOG:
            self.line(str(value).encode())
        else:
            self.message(str(kind), value)


def _write(data: bytes) -> None:
    with _PAUSE:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
