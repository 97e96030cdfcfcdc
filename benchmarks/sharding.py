"""What shards cost beyond the longest of them: `python -m benchmarks.sharding [8 64]`.

Each shard has one row, for which an engine without a model sleeps a second; the rest is the cost of beginning the
shards, of their processes and of putting their results together, up to the stage's result.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import executors.inference
from executors.host import execute
from executors.inference.engine import Completion, Finished, Sampling, Weights
from executors.job import Job
from executors.weights import WeightsDigest

_ROW_SECONDS = 1.0


class _Sleeper:
    name, context = "sleeper", None

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def tokenizer(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(text)]}

    def generate(
        self, prompts: Mapping[int, list[int]], sampling: Sampling, finished: Finished
    ) -> dict[int, list[Completion]]:
        time.sleep(_ROW_SECONDS * len(prompts))
        found = {row: [Completion("", "stop", 1)] for row in prompts}
        finished(found)
        return found

    def close(self) -> None:
        pass


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=int, nargs="*", default=[8, 64], help="numbers of shards")
    os.environ["MLOC_ENGINE_IDLE"] = "120"  # as shards of a warm engine, which all run at the same time
    executors.inference.load_engine = lambda ctx, weights, used: _Sleeper()  # pyright: ignore[reportAttributeAccessIssue]
    executors.inference.weights_of = lambda ctx: (Weights(Path()), WeightsDigest("", ("",)))
    for count in parser.parse_args().shards:
        print(f"{count} shards: {_seconds_beyond(count):.2f} s")


def _seconds_beyond(count: int) -> float:
    raw = {
        "task_type": "inference",
        "model": {"source": {"type": "local", "identifier": "none"}},
        "data": {"items": [f"row {number}" for number in range(count)]},
        "parallel": {"enabled": True, "max_shards": count},
        "resources": {"replicas": count},
    }
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as folder:
        job = Job(
            task_id="t", task_name="t", stage="s", raw=raw, out=Path(folder) / "out", cache=Path(folder) / "cache"
        )
        begun = time.monotonic()
        result = execute(job)
        seconds = time.monotonic() - begun
    assert len(result.payload["shards"]) == count
    return seconds - result.payload["usage"]["latency_sec"]


if __name__ == "__main__":
    main()
