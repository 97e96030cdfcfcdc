"""The slice grammar of splits: `train`, `train[:200]`, `train[60:100]`, `train[:1%]`, `validation[-50:]`, joined by `+`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from executors.base import ExecutorError

_PART = re.compile(r"^\s*([\w.-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*$")


@dataclass(frozen=True)
class Slice:
    """A range of one split; bounds are row numbers, or percent when they end with `%`."""

    name: str
    start: str | None = None
    stop: str | None = None

    def rows(self, count: int) -> range:
        """Row numbers of a split that has `count` rows; bounds beyond its end are cut, as in Python."""
        start, stop, _ = slice(_bound(self.start, count), _bound(self.stop, count)).indices(count)
        return range(start, max(start, stop))


def parse_split(text: str) -> tuple[Slice, ...]:
    """Parse a split expression; raises ExecutorError when it is none."""
    parts = []
    for part in text.split("+"):
        match = _PART.match(part)
        if not match:
            raise ExecutorError(
                f"split {text!r} cannot be read.", "Write train, train[:200], train[60:100], train[:1%] or test[-50:]."
            )
        parts.append(Slice(*match.groups()))
    return tuple(parts)


def _bound(text: str | None, count: int) -> int | None:
    if text is None:
        return None
    return round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)
