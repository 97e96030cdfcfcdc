"""Cost of submitting one task of three stages, without its work: `python benchmarks/submit.py [--tasks 20]`.

Prints milliseconds (wall, and CPU of this process) of each part, with the storage that `mloc` sets up in a new home.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_TASK = """\
apiVersion: mloc/v1
metadata: {{name: bench-{number}, owner: alice}}
spec:
  taskType: echo
  stages:
    - {{name: prepare, spec: {{echo: 1}}}}
    - {{name: train, dependsOn: [prepare], spec: {{echo: 2}}}}
    - {{name: check, dependsOn: [train], spec: {{echo: 3}}}}
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20, help="tasks to take the mean of")
    numbers = range(parser.parse_args().tasks)
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as folder:
        os.environ |= {"MLOC_HOME": f"{folder}/home", "DAGSTER_HOME": f"{folder}/home/dagster"}
        _measure(Path(folder), numbers)


def _measure(folder: Path, numbers: Sequence[int]) -> None:
    from mloc_dagster.definitions.assets import build_job
    from mloc_dagster.definitions.instance import open_instance
    from mloc_dagster.definitions.launcher import LocalRunLauncher
    from mloc_dagster.definitions.submit import create_run
    from mloc_dagster.plan import compile_plan
    from mloc_dagster.spec import load_text
    from mloc_dagster.store.home import Home

    LocalRunLauncher.launch_run = lambda self, context: None
    with open_instance(Home.current()) as instance:
        plans = [compile_plan(load_text(_TASK.format(number=number), base=folder)) for number in numbers]
        create_run(instance, plans[0], "warm_up", fresh=False, tags=None)
        runs = []
        _print("load and plan", numbers, lambda n: compile_plan(load_text(_TASK.format(number=n), base=folder)))
        _print("job of assets", numbers, lambda n: build_job(plans[n], f"job_{n}"))
        _print("create run (with job of assets)", numbers, lambda n: runs.append(_created(instance, plans[n], n)))
        _print("hand to the coordinator", numbers, lambda n: instance.submit_run(runs[n].run_id, None))


def _created(instance, plan, number: int):
    from mloc_dagster.definitions.submit import create_run

    return create_run(instance, plan, f"job_{number}", fresh=False, tags=None)


def _print(what: str, numbers: Sequence[int], work: Callable[[int], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    for number in numbers:
        work(number)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what}: {wall / len(numbers) * 1000:.1f} ms, {cpu / len(numbers) * 1000:.1f} ms CPU")


if __name__ == "__main__":
    main()
