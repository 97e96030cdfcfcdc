"""The slice grammar of a data set split: `train`, `train[:200]`, `train[60:100]`, `train[:1%]`, `validation[-50:]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SLICE = re.compile(r"^\s*([A-Za-z0-9_.\-]+)\s*(?:\[\s*(-?\d+%?)?\s*(:)?\s*(-?\d+%?)?\s*\])?\s*$")


class SliceError(ValueError):
    """A split that the grammar does not know."""


@dataclass(frozen=True)
class Slice:
    """A split's name and the rows of it: bounds are rows, or percent when `percent` is set for that bound."""

    name: str
    start: str | None = None
    stop: str | None = None

    def rows(self, count: int) -> range:
        """Return the rows of a split that has `count` rows; percents round to the nearest row, as `datasets` does."""
        return range(count)[slice(_row(self.start, count), _row(self.stop, count))]

    def renamed(self, name: str) -> Slice:
        """Return the same rows of another split."""
        return Slice(name, self.start, self.stop)

    def __str__(self) -> str:
        if self.start is None and self.stop is None:
            return self.name
        return f"{self.name}[{self.start or ''}:{self.stop or ''}]"


def parse_slice(text: str) -> Slice:
    """Parse a split; raises SliceError with the way out."""
    match = _SLICE.match(text)
    if not match or ("[" in text and not match[3]):
        raise SliceError(
            f"{text!r:.60} is not a split; write train, train[:200], train[60:100], train[:1%] or validation[-50:]"
        )
    for bound in (match[2], match[4]):
        if bound and bound.endswith("%") and abs(int(bound[:-1])) > 100:
            raise SliceError(f"{bound:.60} is more than the whole split; write at most 100%")
    return Slice(match[1], match[2], match[4])


def _row(bound: str | None, count: int) -> int | None:
    if bound is None:
        return None
    return round(int(bound[:-1]) * count / 100) if bound.endswith("%") else int(bound)
