"""How fast runs start, against stock Dagster on the same machine at the same time: `python benchmarks/start.py`.

`submit → step`: from the call of `submit` with a compiled plan to the first step's start, mean of `--runs` runs, one
at a time, two seconds after the one before. `tasks/s`: that many tasks of one stage that does nothing, all submitted
at once, until the last one has ended. Ours: what `mloc` sets up in a new home, with its daemon: runs go through the
queue and the warm launcher. Stock: the same job through `DefaultRunLauncher`, without a queue, and Dagster's own
storage and logs. Ours and stock take turns, so that other work on the machine weighs on both. `--postgres` measures
both on a PostgreSQL that is started for it (initdb and pg_ctl on the PATH; as root it runs as the user `postgres`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_TASK = (
    "apiVersion: mloc/v1\nmetadata: {{name: bench-{number}, owner: alice}}\nspec: {{taskType: echo, echo: {number}}}\n"
)
_STOCK = """\
run_launcher: {module: dagster._core.launcher, class: DefaultRunLauncher}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
"""
_PAUSE_SECONDS = 2.0
"""What was begun by the run before has come to its end."""
_REST = "telemetry: {enabled: false}\nnux: {enabled: false}\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8, help="runs to take the mean of (default 8)")
    parser.add_argument("--tasks", type=int, default=40, help="tasks of the sustained load (default 40)")
    parser.add_argument("--postgres", action="store_true", help="measure on PostgreSQL")
    parser.add_argument("--side", choices=("ours", "stock"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        _answer(arguments.side)
        return
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="mloc-bench-", ignore_cleanup_errors=True))
        )
        storage = _postgres_storage(stack) if arguments.postgres else {"ours": "", "stock": ""}
        ours, stock = (stack.enter_context(_side(name, folder, storage[name])) for name in ("ours", "stock"))
        _compare(ours, stock, arguments.runs, arguments.tasks)


def _compare(ours: _Side, stock: _Side, runs: int, tasks: int) -> None:
    for side in (ours, stock):
        side.ask("start", 1)  # the first one starts the pool, or the code server
    pairs = [(ours.ask("start", 1), stock.ask("start", 1)) for _ in range(runs)]
    our, their = ([pair[index] * 1000 for pair in pairs] for index in (0, 1))
    print(f"submit → step: ours {_spread(our)}, stock {_spread(their)}: {_mean(their) / _mean(our):.1f} times as fast")
    few = max(2, tasks // 8)
    rate, stock_rate = tasks / ours.ask("load", tasks), few / stock.ask("load", few)
    print(
        f"tasks/s: ours {rate:.1f} ({tasks} tasks), stock {stock_rate:.2f} ({few} tasks): {rate / stock_rate:.1f} times"
    )


def _spread(values: list[float]) -> str:
    return f"{_mean(values):.0f} ms ({min(values):.0f} to {max(values):.0f})"


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


class _Side:
    """A process that submits, to one home."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def ask(self, what: str, count: int) -> float:
        """Return the seconds that it took."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([what, count]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"the measuring process ended with {self._process.wait()}:\n{self._log.read_text()[-3000:]}"
            )
        return float(line)


@contextmanager
def _side(name: str, folder: Path, storage: str) -> Iterator[_Side]:
    home = folder / name
    (home / "dagster").mkdir(parents=True)
    if name == "stock":
        (home / "dagster" / "dagster.yaml").write_text(_STOCK + _REST + storage, "utf-8")
    elif storage:
        (home / "dagster" / "dagster.yaml").write_text(_ours_on(storage), "utf-8")
    environment = {**os.environ, "MLOC_HOME": str(home), "DAGSTER_HOME": str(home / "dagster"), "MLOC_POOL_IDLE": "30"}
    environment["PYTHONPATH"] = str(_ROOT)
    process = subprocess.Popen(
        [sys.executable, __file__, "--side", name], env=environment, cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / f"{name}.log").open("w"),
    )  # fmt: skip
    try:
        yield _Side(process, folder / f"{name}.log")
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _ours_on(storage: str) -> str:
    from mloc_dagster.definitions.instance import DAGSTER_YAML

    before, _, after = DAGSTER_YAML.partition("storage:\n")
    return before + storage + after.partition("\n\n")[2]


def _postgres_storage(stack: ExitStack) -> dict[str, str]:
    sys.path.insert(0, str(_ROOT))
    from tests.postgres import postgres_server

    server = stack.enter_context(postgres_server())
    ours, stock = (f"    postgres_url: {server.database(name)}\n" for name in ("ours", "stock"))
    kept = "storage:\n  custom:\n    module: mloc_dagster.store.postgres\n    class: PostgresStorage\n    config:\n  "
    return {"ours": kept + ours, "stock": f"storage:\n  postgres:\n{stock}"}


def _answer(side: str) -> None:
    """Do what the parent asks for, line by line."""
    from mloc_dagster.cli.home import open_home
    from mloc_dagster.placement.launcher import client

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    instance, home = open_home()
    number = 0
    with _launching(side, instance) as launch:
        for line in sys.stdin:
            what, count = json.loads(line)
            numbers = range(number, number + count)
            number += count
            print((_start if what == "start" else _load)(instance, home, launch, numbers), file=out, flush=True)
    client.stop(home)


@contextmanager
def _launching(side: str, instance):
    """Give what hands a created run to the coordinator; stock wants a workspace with the code location."""
    if side == "ours":
        with _daemon(Path(instance.root_directory)):
            yield lambda run: instance.submit_run(run.run_id, None)
        return
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import ModuleTarget

    target = ModuleTarget("mloc_dagster.definitions", "mloc", os.getcwd(), "mloc")
    with WorkspaceProcessContext(instance, target) as process:
        yield lambda run: instance.submit_run(run.run_id, process.create_request_context())


@contextmanager
def _daemon(root: Path) -> Iterator[None]:
    """Have the queue's daemon running."""
    from mloc_dagster.placement.queue.signals import daemon_is_there

    daemon = subprocess.Popen([sys.executable, "-m", "mloc_dagster.definitions.daemon"])
    try:
        while not daemon_is_there(root):
            if daemon.poll() is not None:
                raise SystemExit(f"the daemon ended with {daemon.returncode}")
            time.sleep(0.1)
        yield
    finally:
        daemon.send_signal(signal.SIGINT)
        daemon.wait(30)


def _start(instance, home, launch, numbers: range) -> float:
    time.sleep(_PAUSE_SECONDS)
    run, begun = _submitted(instance, home, launch, numbers[0])
    _wait(instance, [run])
    stats = instance.get_run_step_stats(run)
    return stats[0].start_time - begun


def _load(instance, home, launch, numbers: range) -> float:
    begun = time.time()
    runs = [_submitted(instance, home, launch, number)[0] for number in numbers]
    _wait(instance, runs)
    return time.time() - begun


def _submitted(instance, home, launch, number: int) -> tuple[str, float]:
    from mloc_dagster.definitions.submit import create_run, store_spec
    from mloc_dagster.plan import compile_plan
    from mloc_dagster.spec import load_text

    plan = compile_plan(load_text(_TASK.format(number=number), base=home.root))
    begun = time.time()
    run = create_run(instance, plan, store_spec(home, plan.task), fresh=False, tags=None)
    launch(run)
    return run.run_id, begun


def _wait(instance, runs: list[str]) -> None:
    waiting = list(runs)
    while waiting:
        run = instance.get_run_by_id(waiting[-1])
        if not run.is_finished:
            time.sleep(0.05)
            continue
        if not run.is_success:
            raise SystemExit(f"run {run.run_id} ended as {run.status.value}")
        waiting.pop()


if __name__ == "__main__":
    main()
