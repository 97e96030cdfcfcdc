"""The daemon: `python -m mloc_dagster.definitions.daemon [-w FILE]`: Dagster's, with our queue in place of its own."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Thread

from dagster import DagsterInstance, DagsterRun
from dagster._core.workspace.context import IWorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget, WorkspaceFileTarget
from dagster._daemon.controller import create_daemon_of_type, daemon_controller_from_instance
from dagster._daemon.daemon import DaemonIterator, DagsterDaemon, MonitoringDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._daemon.utils import DaemonErrorCapture
from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers

from mloc_dagster.definitions.execution import TASK_ID
from mloc_dagster.definitions.instance import hold_connections, open_instance
from mloc_dagster.definitions.lost import Watch
from mloc_dagster.definitions.reloading import reloaded
from mloc_dagster.definitions.unwatched import end_unwatched
from mloc_dagster.files.atomic import sweep
from mloc_dagster.placement.failures.silence import lost_after
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.queue.coordinator import QueueCoordinator
from mloc_dagster.placement.queue.scheduler import Scheduler
from mloc_dagster.placement.queue.signals import Door, only_daemon
from mloc_dagster.placement.workers.declared import workers_of
from mloc_dagster.spec import SpecError
from mloc_dagster.store.home import Home
from mloc_dagster.telemetry import logs

_log = logging.getLogger("mloc")
_REGISTER_SECONDS = 10.0
_LEAST_SILENCE_SECONDS = 2.0


class QueueDaemon(QueuedRunCoordinatorDaemon):
    """Looks at the queue every tick, and at once when someone knocks; launches a run the way Dagster's daemon does."""

    def __init__(self, coordinator: QueueCoordinator) -> None:
        super().__init__(interval_seconds=coordinator.tick_seconds)
        self._coordinator = coordinator

    def core_loop(self, workspace_process_context: IWorkspaceProcessContext, shutdown_event: Event) -> DaemonIterator:
        """Pass after pass; an error is told and the next pass comes all the same."""
        instance = workspace_process_context.instance
        ledger = Ledger.of_instance(instance)
        hardware = _Hardware(ledger, Home.current())
        hardware.register()
        scheduler = Scheduler(
            instance,
            ledger,
            self._coordinator.policy,
            self._coordinator.lease_seconds,
            launch=lambda run: self._launch(workspace_process_context, run),
            settled=Watch(instance, _silence(self._coordinator.lease_seconds)).settle,
        )
        door = Door(Path(instance.root_directory))
        try:
            while not shutdown_event.is_set():
                woken = door.wait(0.0 if scheduler.behind else self._coordinator.tick_seconds)
                try:
                    hardware.register_again()
                    yield from scheduler.step(woken)
                except Exception:
                    yield DaemonErrorCapture.process_exception(
                        exc_info=sys.exc_info(), logger=self._logger, log_message="a pass over the queue failed"
                    )
                    shutdown_event.wait(1)
                yield None
        finally:
            scheduler.close()
            door.close()

    def _launch(self, context: IWorkspaceProcessContext, run: DagsterRun) -> bool:
        instance = context.instance
        settings = instance.get_concurrency_config()
        with logs.about(run_id=run.run_id, task_id=run.tags.get(TASK_ID) or run.run_id):
            begun = self._dequeue_run(instance, context.create_request_context(), run, settings, None)
            _log.info("launched %s" if begun else "could not launch %s", run.job_name)
        return begun


class RunMonitoring(MonitoringDaemon):
    """Dagster's, which would only end a run that has lost its worker: before it looks, such runs get their cause and
    another attempt. At its start, that is the adoption of runs that went on while there was no daemon. What still goes
    on elsewhere for runs that are over is ended."""

    def run_iteration(self, workspace_process_context: IWorkspaceProcessContext) -> DaemonIterator:
        """Look at all runs that go on."""
        Watch(workspace_process_context.instance, None).settle_all()
        yield from super().run_iteration(workspace_process_context)
        end_unwatched(workspace_process_context.instance, Home.current())


class _Hardware:
    """This machine's workers in the ledger."""

    def __init__(self, ledger: Ledger, home: Home) -> None:
        self._ledger, self._home, self._at = ledger, home, 0.0

    def register(self) -> None:
        """Enter them; raises SpecError when workers.yaml has faults."""
        self._at = time.monotonic()
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        self._ledger.register(socket.gethostname(), workers_of(self._home), load)

    def register_again(self) -> None:
        """Enter them every now and then: the file or the load may have changed."""
        if time.monotonic() - self._at > _REGISTER_SECONDS:
            self.register()


def daemons(instance: DagsterInstance) -> Sequence[DagsterDaemon]:
    """Return the daemons that an instance needs."""
    coordinator = instance.run_coordinator
    found = []
    for kind in instance.get_required_daemon_types():
        if kind == QueueDaemon.daemon_type() and isinstance(coordinator, QueueCoordinator):
            found.append(QueueDaemon(coordinator))
        elif kind == RunMonitoring.daemon_type():
            found.append(RunMonitoring(interval_seconds=instance.run_monitoring_poll_interval_seconds))
        else:
            found.append(create_daemon_of_type(kind, instance))
    return found


def _silence(lease_seconds: float) -> float | None:
    """How long a worker may be silent after its lease has expired, which already took a while."""
    seconds = lost_after()
    return None if seconds is None else max(_LEAST_SILENCE_SECONDS, seconds - lease_seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; returns 2 when there is a daemon for this home already, or settings are wrong."""
    parser = argparse.ArgumentParser(prog="python -m mloc_dagster.definitions.daemon")
    parser.add_argument("-w", "--workspace", type=Path, help="a workspace.yaml; default: our own code location")
    workspace = parser.parse_args(arguments).workspace
    try:
        logs.configure("daemon")
    except logs.BadFormat as error:
        print(error, file=sys.stderr)
        return 2
    setup_interrupt_handlers()
    home = Home.current()
    with capture_interrupts(), open_instance(home) as instance, only_daemon(Path(instance.root_directory)) as alone:
        faults = list(_faults(instance, home, alone))
        for fault in faults:
            print(fault, file=sys.stderr)
        return 2 if faults else _run(instance, workspace)


def _faults(instance: DagsterInstance, home: Home, alone: bool) -> Iterator[str]:
    if not alone:
        yield f"there is a daemon for {instance.root_directory} already; stop that one first (`mloc up` has one, too)"
        return
    if not isinstance(instance.run_coordinator, QueueCoordinator):
        return
    try:
        lost_after()
    except ValueError as error:
        yield str(error)
    try:
        workers_of(home)
    except SpecError as error:
        yield from map(str, error.faults)
    settings = instance.get_concurrency_config().run_queue_config
    if settings is not None and settings.tag_concurrency_limits:
        way_out = "remove them; priorities, owner_weights and what the workers have decide what runs"
        yield f"dagster.yaml has tag_concurrency_limits, which MLOC's queue does not know; {way_out}"


def _run(instance: DagsterInstance, workspace: Path | None) -> int:
    hold_connections(instance)
    Thread(target=sweep, args=(Home.current().root,), daemon=True, name="sweep").start()  # a home may be large
    target = (
        WorkspaceFileTarget([str(workspace)])
        if workspace
        else ModuleTarget("mloc_dagster.definitions", None, str(Path.cwd()), "mloc")
    )
    try:
        with (
            daemon_controller_from_instance(instance, target, gen_daemons=daemons) as controller,
            reloaded(controller._workspace_process_context, Home.current()),
        ):
            logs.adopt("dagster")
            controller.check_daemon_loop()
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
