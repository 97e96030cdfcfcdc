"""Follow a run on the terminal: one bar a step."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from executors.progress import ProgressTail
from mloc_dagster.cli.screen import error_console
from mloc_dagster.plan.steps import Plan
from mloc_dagster.store.home import Home

if TYPE_CHECKING:
    from dagster import DagsterInstance

_STATES = {
    "STEP_START": "[cyan]running",
    "STEP_SUCCESS": "[green]done",
    "STEP_FAILURE": "[red]failed",
    "STEP_SKIPPED": "[yellow]skipped",
    "STEP_UP_FOR_RETRY": "[yellow]trying again",
}


def follow(instance: DagsterInstance, home: Home, run_id: str, plan: Plan, *, quiet: bool) -> tuple[str, str]:
    """Show a run's steps until it ends and return its id and status. Ctrl-C cancels the run and waits for its end.

    A run that loses its worker gets another attempt, which is followed then.
    """
    from mloc_dagster.definitions.replay import retry_lost

    while True:
        status = _follow(instance, home, run_id, plan, quiet)
        next_id = retry_lost(instance, run_id)
        if next_id is None:
            return run_id, status
        error_console.print(f"{run_id[:8]} has lost its worker; the next attempt is {next_id[:8]}", highlight=False)
        run_id = next_id


def _follow(instance: DagsterInstance, home: Home, run_id: str, plan: Plan, quiet: bool) -> str:
    from mloc_dagster.definitions.lost import end_if_lost

    screen = _Screen(plan, home.logs / f"{run_id}.progress.jsonl")
    cancelling = False
    with screen.progress if not quiet else _Nothing():
        while True:
            try:
                current = instance.get_run_by_id(run_id)
                if not quiet:
                    screen.update(instance, run_id)
                if current is None or current.is_finished:
                    return current.status.value if current else "FAILURE"
                end_if_lost(instance, current)
                time.sleep(0.15)
            except KeyboardInterrupt:
                if cancelling:
                    raise
                cancelling = True
                error_console.print("cancelling; once more to leave it alone")
                signal.signal(signal.SIGINT, signal.default_int_handler)
                instance.run_coordinator.cancel_run(run_id)


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        return None


class _Screen:
    """The bars; fed from the run's events and its progress file."""

    def __init__(self, plan: Plan, progress_file: Path) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
        )
        self.progress = Progress(*columns, console=error_console)
        self._bars: dict[str, TaskID] = {}
        for step in plan.steps:
            bar = self.progress.add_task(step.key, total=None, start=False, count="", state="waiting")
            self._bars[step.key] = self._bars[step.op_name] = bar
        self._tail, self._cursor = ProgressTail(progress_file, whole=True), None

    def update(self, instance: DagsterInstance, run_id: str) -> None:
        connection = instance.get_records_for_run(run_id, cursor=self._cursor)
        self._cursor = connection.cursor
        for record in connection.records:
            entry = record.event_log_entry
            kind = entry.dagster_event_type.value if entry.dagster_event_type else ""
            bar = self._bars.get(entry.step_key or "")
            if bar is None or kind not in _STATES:
                continue
            if kind == "STEP_START":
                self.progress.start_task(bar)
            if kind == "STEP_SUCCESS":
                total = self.progress.tasks[bar].total or 1
                self.progress.update(bar, total=total, completed=total)
            if kind in ("STEP_SUCCESS", "STEP_FAILURE"):
                self.progress.stop_task(bar)
            self.progress.update(bar, state=_STATES[kind])
        self._tail.read(self._show)

    def _show(self, value: dict[str, Any]) -> None:
        bar = self._bars.get(value.get("step", ""))
        if bar is not None:
            done, total, unit = value.get("done") or 0, value.get("total"), value.get("unit", "")
            metrics = " ".join(
                f"{k} {v:.4g}" for k, v in (value.get("metrics") or {}).items() if isinstance(v, (int, float))
            )
            count = f"{done:g}/{total:g} {unit}" if total else f"{done:g} {unit}"
            self.progress.update(bar, completed=done, total=total, count=f"{count} {metrics[:50]}")
