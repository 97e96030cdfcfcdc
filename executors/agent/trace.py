"""What every item did, step by step, written as it happens: `trace/steps.jsonl`.

One line a step; an item starts with a line `start` (also when it starts over) and ends with a line `end`. After a kill
the items that have ended are kept, and an unfinished line at the end is passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from executors.messages import Text
from mloc_dagster.spec.base import Json

FinishReason = Literal["stop", "length", "max_iterations", "timeout", "error"]
FAILED: frozenset[FinishReason] = frozenset({"max_iterations", "timeout", "error"})


class Outcome(BaseModel):
    """How one item ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str
    finish_reason: FinishReason
    seconds: float
    error: str | None = None


class ItemTrace:
    """The steps of one item; `steps` holds them as they stand in the result."""

    def __init__(self, index: int, write: Callable[[dict[str, Json]], dict[str, Json]]) -> None:
        self._index, self._write = index, write
        self.steps: list[dict[str, Json]] = []
        self.outcome: Outcome | None = None
        self.texts: list[str] = []
        """What the model said, in order."""

    def step(self, kind: Literal["model", "tool"], agent: str, seconds: float, **values: Json) -> None:
        """Add a step of `agent` (the role) that took `seconds`."""
        number = len(self.steps)
        step = {"step": number, "type": kind, "agent": agent, **values, "seconds": round(seconds, 4)}
        self.steps.append(self._write({"item": self._index, **step}))

    def end(self, outcome: Outcome) -> None:
        """Add how the item ended."""
        written = self._write({"item": self._index, "type": "end", **outcome.model_dump()})
        self.outcome = Outcome(**{key: written[key] for key in Outcome.model_fields})


class Trace:
    """All items of a stage; secrets are hidden before a line is written."""

    def __init__(self, path: Path, redact: Callable[[Json], Json]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._redact = redact
        self._ended = _read(path) if path.is_file() else {}
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")

    def finished(self, index: int, prompt: Text) -> ItemTrace | None:
        """Return the steps of an item that an earlier attempt ended with an answer or at a limit, else None."""
        digest, trace = self._ended.get(index, ("", None))
        done = trace is not None and trace.outcome is not None and trace.outcome.finish_reason != "error"
        return trace if done and digest == _digest(prompt) else None

    def start(self, index: int, prompt: Text) -> ItemTrace:
        """Start an item, or start it over."""
        self._write({"item": index, "type": "start", "prompt_sha256": _digest(prompt)})
        return ItemTrace(index, self._write)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: dict[str, Json]) -> dict[str, Json]:
        """Write a line with secrets hidden; returns it without the item's number."""
        hidden = _writable(self._redact(line))
        self._file.write(json.dumps(hidden, ensure_ascii=False, default=str) + "\n")
        self._file.flush()
        return {key: value for key, value in hidden.items() if key != "item"}


def _writable(value: Json) -> Json:
    """The value without lone surrogates, such as those of file names that are no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    return [_writable(item) for item in value] if isinstance(value, list | tuple) else value


def _read(path: Path) -> dict[int, tuple[str, ItemTrace]]:
    """Items by index, each with the digest of its prompt; a later start of an item replaces an earlier one."""
    found: dict[int, tuple[str, ItemTrace]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
                index, kind = line.pop("item"), line["type"]
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if kind == "start":
                found[index] = (line["prompt_sha256"], ItemTrace(index, lambda line: line))
            elif index in found and kind == "end":
                found[index][1].outcome = Outcome(**{key: line.get(key) for key in Outcome.model_fields})
            elif index in found:
                found[index][1].steps.append(line)
    return found


def _digest(prompt: Text) -> str:
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
