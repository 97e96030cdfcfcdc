"""The task files that the tests of the task language share."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
GOOD = sorted(HERE.glob("good/*.yaml"))
BAD = sorted(HERE.glob("bad/*.yaml"))
SHIPPED = sorted((HERE.parents[1] / "task_specs").rglob("*.y*ml"))
_MARK = re.compile(r"^# <- (\d+):(\d+) (\S+) (.*) ; (.+)$", re.MULTILINE)

Place = tuple[int, int, str, str, str]
"""Line, column, key path, what is wrong, the way out."""


def expected(file: Path) -> list[Place]:
    """Return the faults that the header of a bad file tells."""
    marks = _MARK.findall(file.read_text("utf-8"))
    return [(int(line), int(column), "" if path == "-" else path, what, out) for line, column, path, what, out in marks]


def name_of(file: Path) -> str:
    """Return the file's name for a test id."""
    return file.stem
