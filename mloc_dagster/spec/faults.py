"""What is wrong with a task file, said so that a person can mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches

_LONGEST_WORD = 100
MAX_FAULTS = 200
"""So many faults of one file are told; the rest is counted."""
MOST_OF_A_KIND = 2_000
"""So many faults of one kind are looked for at all."""


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
        place = f"{self.file}:{self.line}:{self.column}" if self.line else f"{self.file}:"  # 0: the file as a whole
        text = f"{place} {self.path}: {self.what}" if self.path else f"{place} {self.what}"
        text += f" (found {self.value})" if self.value else ""
        return f"{text}; {self.way_out}" if self.way_out else text

    @property
    def is_missing(self) -> bool:
        """Whether it says that something which has to be there is not."""
        return self.what == "is missing" or self.what.startswith("is missing, ")

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


def without_echoes(faults: Sequence[Fault]) -> list[Fault]:
    """Return the faults without those that only follow from another one.

    Something is not missing when one of its keys is misspelt, or when what is wrong inside it is told.
    """
    told = {fault.path for fault in faults}
    wrong = {fault.path for fault in faults if not fault.is_missing}
    misspelt = {path for fault in faults for path in _meant(fault)}

    def follows(fault: Fault) -> bool:
        if not fault.is_missing:
            return False
        meant = {fault.path, f"spec.{fault.path.rpartition('.')[2]}"} & misspelt
        inside = any(path.startswith(fault.path) and (path != fault.path or path in wrong) for path in told)
        return bool(meant) or inside

    return [fault for fault in faults if not follows(fault)]


def _meant(fault: Fault) -> list[str]:
    """The path that a misspelt key was probably meant to have."""
    if not fault.way_out.startswith("did you mean "):
        return []
    parent, dot, _ = fault.path.rpartition(".")
    return [f"{parent}{dot}{fault.way_out.removeprefix('did you mean ').rstrip('?')}"]


def shown(value: object, limit: int = 80) -> str:
    """Return a value as a short text for a message; nothing for null."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    text = repr(value[:limit] if isinstance(value, (str, list)) and len(value) > limit else value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """Return the choice that `word` most likely meant, or None."""
    if len(word) > _LONGEST_WORD:
        return None
    folded = {choice.lower().replace("_", ""): choice for choice in reversed(choices)}
    exact = folded.get(word.lower().replace("_", "").replace("-", ""))
    return exact or next(iter(get_close_matches(word, choices, n=1, cutoff=0.7)), None)


def listing(choices: Sequence[str], limit: int = 12) -> str:
    """Return `a, b, c` with the rest counted."""
    some = ", ".join(choices[:limit])
    return some if len(choices) <= limit else f"{some} and {len(choices) - limit} more"
