"""What is wrong with a task file, said so that a person can mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches

_LONGEST_WORD = 100
MAX_FAULTS = 200
"""So many faults of one file are told; the rest is counted."""


@dataclass(frozen=True, order=True)
class Fault:
    """One fault or warning at a place in a file; lines and columns count from 1, 0 means the whole file."""

    line: int
    column: int
    path: str
    what: str
    value: str = ""
    way_out: str = ""
    file: str = "<text>"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        text = f"{place} {self.path}: {self.what}" if self.path else f"{place} {self.what}"
        text += f" (found {self.value})" if self.value else ""
        return f"{text}; {self.way_out}" if self.way_out else text

    def in_file(self, file: str) -> Fault:
        """Return the same fault, naming the file."""
        return replace(self, file=file)

    def as_dict(self) -> dict[str, str | int]:
        """Return the parts for JSON answers."""
        return asdict(self)


class SpecError(Exception):
    """A task file that cannot be used; `faults` holds every reason, in the order of the file."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        told = sorted(set(faults))
        if len(told) > MAX_FAULTS:
            more, last = len(told) - MAX_FAULTS, told[MAX_FAULTS]
            rest = Fault(last.line, last.column, "", f"and {more} more faults from here on", file=last.file)
            told = [*told[:MAX_FAULTS], rest]
        self.faults = tuple(told)
        super().__init__("\n".join(str(fault) for fault in self.faults))


def shown(value: object, limit: int = 80) -> str:
    """Return a value as a short text for a message."""
    text = repr(value[:limit] if isinstance(value, (str, list)) and len(value) > limit else value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """Return the choice that `word` most likely meant, or None."""
    if len(word) > _LONGEST_WORD:
        return None
    folded = {choice.lower().replace("_", ""): choice for choice in choices}
    exact = folded.get(word.lower().replace("_", "").replace("-", ""))
    return exact or next(iter(get_close_matches(word, choices, n=1, cutoff=0.6)), None)


def listing(choices: Sequence[str], limit: int = 12) -> str:
    """Return `a, b, c` with the rest counted."""
    some = ", ".join(choices[:limit])
    return some if len(choices) <= limit else f"{some} and {len(choices) - limit} more"
