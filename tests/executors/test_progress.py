"""The progress file: at most one line a second, and the last one is never lost."""

from __future__ import annotations

import json
from pathlib import Path

from executors.progress import ProgressSink


def test_throttled_and_flushed(tmp_path: Path) -> None:
    sink = ProgressSink(tmp_path / "logs" / "progress.jsonl", interval=60)
    for done in range(100):
        sink.update(done, 99, "rows", loss=float("nan") if done == 99 else 0.5)
    sink.flush()
    lines = [json.loads(line) for line in (tmp_path / "logs" / "progress.jsonl").read_text().splitlines()]
    assert [line["done"] for line in lines] == [0, 99]
    assert set(lines[0]) == {"time", "done", "total", "unit", "metrics"}
    assert lines[1]["metrics"] == {"loss": "nan"}
