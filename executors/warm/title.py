"""The command line of a process as others see it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

ROOM = " " * 4096
"""An argument that leaves room for longer command lines than the first; nothing of it is to be seen."""
_ARG_START, _ARG_END = 47, 48
"""Fields of /proc/<pid>/stat (proc(5)), counted from 0."""


def show(command: Sequence[str]) -> None:
    """Have `ps` show a command for this process, cut to the room that there is."""
    fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    start, end = (int(fields[index - 2]) for index in (_ARG_START, _ARG_END))
    text = b"".join(os.fsencode(part) + b"\0" for part in command)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
