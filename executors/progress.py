"""Progress of a running stage, as lines that a reader can follow."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from mloc_dagster.spec.base import Json


class ProgressSink:
    """Appends `{"time","done","total","unit","metrics"}` lines to `progress.jsonl`, at most one per `interval` seconds.

    The newest line is never lost: `flush` writes one that was held back. Times are seconds since the epoch.
    """

    def __init__(self, path: Path, interval: float = 1.0) -> None:
        self._path = path
        self._interval = interval
        self._written = -math.inf
        self._held: dict[str, Json] | None = None

    def update(self, done: float, total: float | None, unit: str, **metrics: float) -> None:
        """Say that `done` of `total` units (rows, steps, bytes) are finished, with metrics of this moment."""
        line: dict[str, Json] = {"time": time.time(), "done": done, "total": total, "unit": unit, "metrics": metrics}
        if time.monotonic() - self._written < self._interval:
            self._held = line
            return
        self._write(line)

    def flush(self) -> None:
        """Write the line that was held back, if any."""
        if self._held is not None:
            self._write(self._held)

    def _write(self, line: dict[str, Json]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line)) + "\n")
        self._written = time.monotonic()
        self._held = None


class ProgressTail:
    """Complete lines that were appended to a JSON-lines file since the last look; at first, with `whole`, all of it."""

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() and not whole else 0

    def read(self, report: Callable[[dict[str, Json]], None]) -> None:
        """Give the lines that are new to `report`."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                block = file.read()
        except OSError:
            return
        whole, newline, _ = block.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            value = _parsed(line)
            if isinstance(value, dict):
                report(value)


def _parsed(line: bytes) -> Json:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _finite(line: dict[str, Json]) -> dict[str, Json]:
    metrics = {key: value if math.isfinite(value) else str(value) for key, value in line["metrics"].items()}
    return line | {"metrics": metrics}
