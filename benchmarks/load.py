"""Cost of a code location of many task files: `python benchmarks/load.py [--files 1000] [--stock 300] [--repeat 5]`.

Prints seconds, CPU seconds (user + system) and MiB; each figure comes from a process of its own. Exits with 1 when one
job takes 100 ms or more beyond imports, or `dagster job execute` over 1.2 times the CPU time that it takes at 10 files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
MOST_SECONDS_A_JOB, MOST_RATIO = 0.1, 1.2
_TASK = """\
apiVersion: mloc/v1
kind: Pipeline
metadata: {{name: bench-{number:04d}, owner: alice, project: bench}}
spec:
  taskType: echo
  stages:
    - {{name: prepare, spec: {{echo: {{number: {number}}}}}}}
    - {{name: train, dependsOn: [prepare], spec: {{echo: {{step: train}}}}}}
    - {{name: check, dependsOn: [train], spec: {{echo: {{step: check}}}}}}
"""
_ONE = """
import json, time
import mloc_dagster.definitions
from mloc_dagster.definitions.repository import TaskFiles
wall, cpu = time.perf_counter(), time.process_time()
TaskFiles.of_environment().get_job({name!r})
print(json.dumps({{"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}}))
"""
_SNAPSHOT = """
import json, resource, time
begun = time.process_time()
{setup}
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import serialize_value
defer = {defer}
snapshot = RepositorySnap.from_def(repository, defer_snapshots=defer)
size = len(serialize_value(snapshot))
print(json.dumps({{
    "cpu": time.process_time() - begun,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "bytes": size,
}}))
"""
_OURS = "import mloc_dagster.definitions as d\nrepository = d.mloc\n_ = repository.get_all_jobs()"
_STOCK = """
import glob
from dagster import AssetSelection, Definitions, asset, define_asset_job
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.definitions import assets as ours
ours.build_asset_job = lambda **options: None  # only the assets are wanted; Definitions makes the jobs
assets, jobs = [], []
for path in sorted(glob.glob({pattern!r})):
    plan = compile_plan(load_file(path))
    name = "job_" + plan.task.name.replace("-", "_")
    made = ours.build_job(plan, name).assets
    assets += made
    jobs.append(define_asset_job(name, AssetSelection.assets(*[asset.key for asset in made])))
repository = Definitions(assets=assets, jobs=jobs).get_repository_def()
"""


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000, help="task files in the large location")
    parser.add_argument("--stock", type=int, default=300, help="task files of the comparison; 0: leave out")
    parser.add_argument("--repeat", type=int, default=5, help="processes that a median is taken of")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as folder:
        return _measure(Path(folder), given.files, given.stock, given.repeat)


def _measure(folder: Path, files: int, stock: int, repeat: int) -> int:
    small, large = _workspace(folder / "small", 10), _workspace(folder / "large", files)
    ones = [_python(_ONE.format(name=_job(number)), large) for number in range(repeat)]
    wall, cpu = (statistics.median(one[kind] for one in ones) for kind in ("wall", "cpu"))
    print(f"the first job of {files}, beyond imports: {wall * 1000:.1f} ms, {cpu * 1000:.1f} ms CPU")
    whole = _python(_SNAPSHOT.format(setup=_OURS, defer=True), large)
    print(f"location of {files}: {_shown(whole)}, snapshot {whole['bytes'] / 2**20:.1f} MiB")
    if stock:
        ours = _python(_SNAPSHOT.format(setup=_OURS, defer=True), _workspace(folder / "stock", stock))
        pattern = str(folder / "stock" / "task_specs" / "**" / "*.yaml").replace("/**", "/*")
        theirs = _python(_SNAPSHOT.format(setup=_STOCK.format(pattern=pattern), defer=True), folder / "stock")
        print(f"location of {stock}: {_shown(ours)}")
        print(f"the same with Definitions: {_shown(theirs)}")
    times: dict[Path, list[float]] = {small: [], large: []}
    for _ in range(repeat):
        for workspace, seconds in times.items():
            seconds.append(_execute(workspace))
    few, many = (statistics.median(seconds) for seconds in times.values())
    print(f"dagster job execute: {few:.2f} CPU s at 10 files, {many:.2f} at {files}, ratio {many / few:.3f}")
    return 0 if wall < MOST_SECONDS_A_JOB and many / few <= MOST_RATIO else 1


def _shown(cost: dict[str, float]) -> str:
    return f"{cost['cpu']:.1f} CPU s, peak {cost['peak']:.0f} MiB"


def _workspace(folder: Path, files: int) -> Path:
    for number in range(files):
        path = folder / "task_specs" / f"group-{number % 10}" / f"bench-{number:04d}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_TASK.format(number=number), encoding="utf-8")
    return folder


def _job(number: int) -> str:
    return f"group_{number % 10}__bench_{number:04d}"


def _environment(workspace: Path) -> dict[str, str]:
    home = workspace / "home"
    (home / "dagster").mkdir(parents=True, exist_ok=True)
    (home / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    folders = {"MLOC_HOME": home, "DAGSTER_HOME": home / "dagster", "MLOC_TASK_SPECS": workspace / "task_specs"}
    own = {name: str(folder) for name, folder in folders.items()}
    return {**os.environ, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _python(code: str, workspace: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", code], env=_environment(workspace), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _execute(workspace: Path) -> float:
    """CPU seconds of one `dagster job execute`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "mloc_dagster.definitions", "-j", _job(5)]
    done = subprocess.run(command, env=_environment(workspace), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
