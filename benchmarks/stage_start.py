"""How fast a stage starts, forked from the warm process against a new interpreter: `python benchmarks/stage_start.py`.

Seconds that `run_job` takes, and CPU seconds of the stage, for a training of one step and a generation of one token
with a model of 0.5M parameters, which are next to nothing beside the start. Warm and cold take turns, so that other
work on the machine weighs on both; the mean of `--rounds` each. What the warm process itself has cost, once, is told
beside. It has a place of its own, and ends with this program.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from mloc_dagster.placement.local import warm  # noqa: E402
from mloc_dagster.placement.local.process import run_job  # noqa: E402
from mloc_dagster.spec.base import Json  # noqa: E402

_STAGES: dict[str, dict[str, Json]] = {
    "sft": {
        "data": {"prompts": ["ab cd"]}, "training": {"max_steps": 1, "logging_steps": 1, "save_strategy": "no"},
    },
    "inference": {"data": {"type": "list", "items": ["ab"]}, "inference": {"max_tokens": 1, "temperature": 0}},
}  # fmt: skip
_MODEL = (
    "import sys; from pathlib import Path; from tests.executors.conftest import make_random_llama as m; m(Path({!r}))"
)
_READY_SECONDS = 300.0


@dataclass(frozen=True)
class _Start:
    seconds: float
    cpu: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="starts of each kind to take the mean of (default 3)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as folder, _own_place(Path(folder)):
        model = Path(folder) / "model"
        subprocess.run([sys.executable, "-c", _MODEL.format(str(model))], cwd=_ROOT, check=True, capture_output=True)
        _run(Path(folder) / "first", "sft", model, "cpu")
        print(f"the warm process: {_ready(Path(folder))}")
        for task_type in _STAGES:
            pairs = [
                [_run(Path(folder) / f"{task_type}-{n}-{kind}", task_type, model, kind) for kind in ("cpu", None)]
                for n in range(rounds)
            ]
            _tell(task_type, [pair[0] for pair in pairs], [pair[1] for pair in pairs])


def _tell(task_type: str, warm_ones: list[_Start], cold_ones: list[_Start]) -> None:
    for what in ("seconds", "cpu"):
        ours, theirs = (statistics.fmean(getattr(one, what) for one in ones) for ones in (warm_ones, cold_ones))
        name = "from the call to the end" if what == "seconds" else "CPU time"
        print(f"{task_type}, {name}: warm {ours:.2f} s, cold {theirs:.2f} s: {theirs / ours:.1f} times")


@contextmanager
def _own_place(folder: Path) -> Iterator[None]:
    os.environ |= {"XDG_RUNTIME_DIR": str(folder), "MLOC_STAGE_POOL_IDLE": "300", "MLOC_ENGINE_IDLE": "0"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        warm.stop()


def _ready(folder: Path) -> str:
    deadline = time.monotonic() + _READY_SECONDS
    while not (found := list(folder.glob("mloc-*/*.sock"))):
        if time.monotonic() > deadline:
            sys.exit(f"not ready: {[log.read_text() for log in folder.glob('mloc-*/*.log')]}")
        time.sleep(0.1)
    (process,) = (one for one in psutil.process_iter() if str(found[0]) in _command(one))
    used, memory = process.cpu_times(), process.memory_info().rss
    return f"{used.user + used.system:.1f} s of CPU at low priority, {memory / 2**20:.0f} MiB"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _run(out: Path, task_type: str, model: Path, kind: warm.Kind | None) -> _Start:
    out.mkdir()
    raw = {"task_type": task_type, "model": {"source": {"type": "local", "identifier": "tiny"}}, **_STAGES[task_type]}
    job = {"task_id": "1/s", "task_name": "t", "stage": "s", "raw": raw, "out": str(out), "on_cpu": True}
    (out / "job.json").write_text(json.dumps({**job, "model_path": str(model)}))
    stage = _Watched(out)
    begun = time.monotonic()

    def look() -> bool:
        stage.look()
        return False

    ended = run_job(out / "job.json", out / "logs", report=lambda _: None, cancelled=look, timeout=None, warm=kind)
    seconds = time.monotonic() - begun
    if ended.code != 0:
        sys.exit(f"{out.name} ended with {ended}:\n{(out / 'logs' / 'stdout.log').read_text()}")
    return _Start(seconds, stage.cpu)


class _Watched:
    """CPU time of a stage's process, as last seen."""

    def __init__(self, out: Path) -> None:
        self._job, self.cpu = str(out / "job.json"), 0.0
        self._process: psutil.Process | None = None

    def look(self) -> None:
        if self._process is None:
            found = (
                one
                for one in psutil.process_iter()
                if "executors.host" in (line := _command(one)) and self._job in line
            )
            self._process = next(found, None)
            return
        try:
            used = self._process.cpu_times()
            self.cpu = used.user + used.system
        except psutil.Error:
            return


if __name__ == "__main__":
    main()
