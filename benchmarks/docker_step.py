"""What a stage in a container takes beyond `docker run` of the same command, in seconds: a fresh engine, five of each.

python -m benchmarks.docker_step
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import yaml

from tests.docker_engine import IMAGE, Engine, engine, mounts

FILE = """\
apiVersion: mloc/v1
metadata: {{name: overhead-{number}, owner: bench}}
spec: {{taskType: echo, echo: {{number: {number}}}, timeoutSeconds: 60}}
"""
TIMES = 5


def main() -> None:
    """Print the medians."""
    with tempfile.TemporaryDirectory() as folder, engine() as one:
        root = Path(folder)
        os.environ |= {"MLOC_HOME": str(root / "home"), "DAGSTER_HOME": str(root / "home" / "dagster")}
        volumes = [*mounts(), f"{root}:{root}"]
        declare(root, one, volumes)
        steps = [step(root, number) for number in range(TIMES + 1)][1:]
        runs = [plain(root, one, volumes) for _ in range(TIMES + 1)][1:]
        print([round(x, 2) for x in steps], [round(x, 2) for x in runs])
        print(f"a step in a container: {statistics.median(steps):.2f} s")
        print(f"docker run of the same command: {statistics.median(runs):.2f} s")
        print(f"beyond it: {statistics.median(steps) - statistics.median(runs):.2f} s")


def declare(root: Path, one: Engine, volumes: list[str]) -> None:
    (root / "home").mkdir()
    docker = {"host": one.host, "image": IMAGE, "network": "host", "volumes": volumes}
    worker = {"name": "one", "cpu": 2, "memory": "2Gi", "docker": docker}
    text = yaml.safe_dump({"artifacts": f"file://{root}/store", "workers": [worker]})
    (root / "home" / "workers.yaml").write_text(text)


def step(root: Path, number: int) -> float:
    """Seconds of a stage, in a run whose process is there already."""
    from mloc_dagster.placement.ledger import Ledger
    from mloc_dagster.placement.local.work import RunInfo, run_step
    from mloc_dagster.placement.seats import Seats
    from mloc_dagster.placement.workers.declared import fleet_of
    from mloc_dagster.plan import compile_plan
    from mloc_dagster.spec import load_text
    from mloc_dagster.store.home import Home

    home = Home(root / "home")
    plan = compile_plan(load_text(FILE.format(number=number), base=root))
    ledger = Ledger(f"sqlite:///{root / 'ledger.db'}")
    seats = Seats(fleet_of(home), ledger, f"run-{number}", "bench", None)
    run = RunInfo(f"run-{number}", f"task-{number}", home, False, True, lambda: False, seats=seats)
    begun = time.perf_counter()
    run_step(plan, plan.steps[0], run, lambda progress: None)
    return time.perf_counter() - begun


def plain(root: Path, one: Engine, volumes: list[str]) -> float:
    """Seconds of `docker run --rm` of what the step's container ran."""
    from mloc_dagster.placement.remote.ship import REMOTE_ROOT

    job = max((root / "store" / "jobs").glob("*/*/*/job.json"))
    key = str(job.parent.relative_to(root / "store"))
    command = ["python", "-u", "-m", "executors.remote", f"file://{root}/store", key]
    environment = {"MLOC_REMOTE_ROOT": REMOTE_ROOT, "MLOC_ENGINE_IDLE": "0", "PYTHONUNBUFFERED": "1"}
    environment |= {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    client = one.client()
    begun = time.perf_counter()
    client.containers.run(IMAGE, command, volumes=volumes, network_mode="host", environment=environment, remove=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
