"""The program of a pool: `python -m mloc_dagster.definitions.pool SOCKET PIPE`; `placement.launcher` says what it is.

Everything that a run needs is imported here, once, and the instance is opened. PIPE is a file descriptor that gets a
byte when the pool listens.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dagster import AssetKey, DagsterInstance

from mloc_dagster.definitions import worker
from mloc_dagster.definitions.instance import hold_connections, open_instance
from mloc_dagster.definitions.lost import report_gone
from mloc_dagster.definitions.replay import retry_lost
from mloc_dagster.definitions.submit import create_run, store_spec
from mloc_dagster.files.atomic import half_folder, sweep
from mloc_dagster.placement.launcher.child import is_alone
from mloc_dagster.placement.launcher.children import Done
from mloc_dagster.placement.launcher.pool import Work, serve
from mloc_dagster.placement.launcher.workers import told_to_end
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_text
from mloc_dagster.spec.task_types import known
from mloc_dagster.store import connections
from mloc_dagster.store.home import Home
from mloc_dagster.store.sqlite import engines
from mloc_dagster.telemetry import logs

_LOADED = (
    "dagster._core.execution.plan.execute_plan",
    "executors.host",
    "mloc_dagster.placement.executor",
    "mloc_dagster.placement.local.work",
)
"""Modules that a run imports when it comes to need them."""
_IDLE_SECONDS = 600.0
_REHEARSAL = """\
apiVersion: mloc/v1
metadata: {name: rehearsal, owner: mloc}
spec:
  taskType: echo
  stages:
    - {name: first, spec: {echo: 1}}
    - {name: second, spec: {echo: 2}}
"""


def main(address: str, pipe: str) -> int:
    """Serve runs until there is no reason to."""
    try:
        logs.configure("pool")
    except logs.BadFormat as error:
        print(error, file=sys.stderr, flush=True)
    with half_folder(Home.current().root / "pool", "empty") as empty:
        return _serve(address, pipe, empty)


def _serve(address: str, pipe: str, empty: Path) -> int:
    home, instance = Home.current(), _instance(Home.current())
    for name in _LOADED:
        importlib.import_module(name)
    known()
    may_share = instance is not None and type(instance.run_storage).__module__.startswith("mloc_dagster.")

    def run(run_id: str, ready: Callable[[], None]) -> Done:
        before = _own_modules()
        worker.configure_logs()
        with _own(instance) as own:
            ended = worker.execute(own, run_id, ready)
        safe = ended.light and ended.code == 0 and may_share and _own_modules() == before
        _close_connections()
        return Done(ended.code, safe and not told_to_end(run_id) and is_alone())

    def bury(run_id: str, pid: int, reason: str) -> None:
        with _own(instance) as own:
            report_gone(own, run_id, f"the worker process {pid} is gone: {reason}")
            retry_lost(own, run_id)

    def warm_up() -> None:
        _rehearse(home, empty)
        _touch(instance)

    idle = float(os.environ.get("MLOC_POOL_IDLE") or _IDLE_SECONDS)
    settings = Path(os.environ["DAGSTER_HOME"]) / "dagster.yaml"
    work = Work(run, bury, partial(_rehearse, home, empty), warm_up, home, settings, idle)
    serve(work, Path(address), lambda: _tell(int(pipe)))
    return 0


def _instance(home: Home) -> DagsterInstance | None:
    """Open the instance for all children; None, for each to open its own, when its storage keeps a handle open."""
    before = _handles()
    instance = open_instance(home)
    _touch(instance)
    _close_connections()
    if _handles() <= before:
        return instance
    instance.dispose()
    return None


def _handles() -> set[str]:
    """Files and sockets that this process has open, by name."""
    found = set()
    for handle in os.scandir("/proc/self/fd"):
        try:
            found.add(os.readlink(handle.path))
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


def _rehearse(home: Home, empty: Path) -> None:
    """Carry a small task out in a home of its own, which is thrown away; so is what a killed pool has left of one.

    `empty`: a folder that the first rehearsal leaves a new home's databases in, for the others to begin with.
    """
    sweep(home.root / "pool")
    with half_folder(home.root / "pool", "rehearsal") as folder, _moved(folder), _silent():
        shutil.copytree(empty, folder, dirs_exist_ok=True)
        own = Home.current()
        plan = compile_plan(load_text(_REHEARSAL, base=folder))
        with open_instance(own) as instance:
            if not any(empty.iterdir()):
                engines.close_all()  # so that all is in the files
                shutil.copytree(folder, empty, dirs_exist_ok=True)
            run = create_run(instance, plan, store_spec(own, plan.task), fresh=False, tags=None)
            worker.execute(instance, run.run_id)
    _close_connections()


def _own_modules() -> frozenset[str]:
    """Our modules that are loaded: the pool watches the files of those that it had when it forked."""
    return frozenset(name for name in list(sys.modules) if name.partition(".")[0] in ("mloc_dagster", "executors"))


def _close_connections() -> None:
    """Close the databases, so that what is stored is on the disk; they open again when used."""
    engines.close_all()
    connections.close_all()


def _touch(instance: DagsterInstance | None) -> None:
    """Have the databases open, and known what tables and columns they have."""
    if instance is not None:
        Ledger.of_instance(instance)
        instance.get_run_records(limit=1)
        instance.fetch_materializations(AssetKey("none"), limit=1)


@contextmanager
def _moved(folder: Path) -> Iterator[None]:
    """Have this process's home in another folder for a while."""
    before = dict(os.environ)
    os.environ |= {"MLOC_HOME": str(folder), "DAGSTER_HOME": str(folder / "dagster"), "MLOC_TASK_SPECS": str(folder)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _silent() -> Iterator[None]:
    """Have nothing of what is printed meanwhile in the pool's log."""
    kept = [os.dup(stream) for stream in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, file in ((1, sys.stdout), (2, sys.stderr)):
            file.flush()
            os.dup2(kept[stream - 1], stream)
        for handle in (*kept, nowhere):
            os.close(handle)


@contextmanager
def _own(instance: DagsterInstance | None) -> Iterator[DagsterInstance]:
    """Give a child its instance, and close it at the end, so that what it has stored is written to the disk."""
    with instance or DagsterInstance.get() as own:
        hold_connections(own)
        yield own


def _tell(pipe: int) -> None:
    os.write(pipe, b"1")
    os.close(pipe)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
