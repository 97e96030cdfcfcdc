"""500 kills while 200 tasks run: `python -m benchmarks.soak [--kills 500] [--tasks 200] [--seed 1] [--minutes 30]`.

Kills run workers, steps, warm pools, the daemon, the web server, code servers and `mloc up` itself with SIGKILL, at
random moments, so in the middle of SQLite writes too. A task whose run failed is run again at once. In the end: each
run has ended with success or with a cause, each result was delivered once and whole, no stage that was finished was
done again, no process, lease or half file is left, and every database is sound. Exits with 1 and what is broken.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dagster import RunsFilter
from dagster._core.storage.dagster_run import RunRecord

from benchmarks.soak.checks import cause_of, faults
from benchmarks.soak.kills import Killer
from benchmarks.soak.service import Service
from benchmarks.soak.tasks import Task, install_executor, write_tasks

_AT_ONCE, _AT_LEAST = 8, 4
_RETRY_SECONDS = 15.0
"""How long after a run that lost its worker its next attempt may take to appear."""
_QUIET_SECONDS = 300.0
"""How long the last runs may take after the last kill."""


class Soak:
    """Tasks that are submitted step by step while kills go on."""

    def __init__(self, folder: Path, tasks: int, kills: int, seed: int, seconds: float) -> None:
        self._rng = random.Random(seed)
        self._kills, self._pause, self._started = kills, seconds / max(1, kills), time.monotonic()
        self.journal = folder / "journal"
        self.journal.mkdir(parents=True)
        self.service = Service(folder, install_executor(folder / "site"), self.journal)
        self._files = folder / "tasks"
        self.tasks: list[Task] = []
        self._going: list[Task] = []
        self._waiting = self._write(tasks)
        self.killer = Killer(self.service.home, self._rng, folder / "kills.log")
        self.submitted_again = 0
        from mloc_dagster.definitions.instance import open_instance

        self.instance = open_instance(self.service.home)

    def play(self) -> None:
        """Kill and submit until both are done."""
        next_kill = time.monotonic() + 5 * self._pause
        while self.killer.hits.total() < self._kills:
            self._go_on()
            if len(self._going) + len(self._waiting) < _AT_LEAST:  # kills without tasks would prove little
                self._waiting += self._write(1)
            if time.monotonic() > next_kill and self.killer.kill_one():
                next_kill = time.monotonic() + self._rng.expovariate(1 / self._pause)
            time.sleep(0.05)

    def come_to_rest(self) -> bool:
        """Let all runs end, those that were killed once more; returns whether they did in time."""
        deadline = time.monotonic() + _QUIET_SECONDS
        while (self._going or self._waiting) and time.monotonic() < deadline:
            self._go_on()
            time.sleep(0.1)
        return not self._going and not self._waiting

    def _write(self, count: int) -> list[Task]:
        found = write_tasks(self._files, len(self.tasks), count, self._rng)
        self.tasks += found
        return found

    def _go_on(self) -> None:
        self.service.keep_up()
        for task in list(self._going):
            if self._is_over(task):
                self._going.remove(task)
        if self._waiting and len(self._going) < (_AT_ONCE if self._is_time() else _AT_LEAST):
            self._submit(self._waiting.pop(0))

    def _is_time(self) -> bool:
        """Whether tasks are behind kills: both are to come to their end at the same time."""
        begun = len(self.tasks) - sum(not task.runs for task in self._waiting)
        return begun * self._kills < len(self.tasks) * (self.killer.hits.total() + _AT_ONCE)

    def _is_over(self, task: Task) -> bool:
        """Whether a task has come to its end; one that failed and nobody tries again is submitted anew."""
        runs = [record.dagster_run for record in self._records(task)]
        task.runs = [run.run_id for run in runs]
        if not runs or not all(run.is_finished for run in runs):
            task.quiet_since = time.monotonic()
            return False
        if runs[-1].is_success or (task.fault and task.fault in cause_of(self.instance, runs[-1].run_id)):
            return True
        if time.monotonic() - task.quiet_since < _RETRY_SECONDS:
            return False
        self._waiting.insert(0, task)
        return True

    def _records(self, task: Task) -> list[RunRecord]:
        """The runs of a task, by whomever they were started, first things first."""
        found = self.instance.get_run_records(RunsFilter(tags={"mloc/task": task.name}))
        return sorted(found, key=lambda record: record.storage_id)

    def _submit(self, task: Task) -> None:
        from mloc_dagster.definitions.submit import submit_file
        from mloc_dagster.plan import compile_plan
        from mloc_dagster.spec import load_file

        self._going.append(task)
        if task.by_inbox and not task.runs:
            self.service.home.inbox.mkdir(parents=True, exist_ok=True)
            shutil.copy(task.file, self.service.home.inbox / task.file.name)
            return
        submit_file(self.instance, self.service.home, compile_plan(load_file(task.file)))
        self.submitted_again += bool(task.runs)


def soak(folder: Path, tasks: int, kills: int, seed: int, seconds: float, say: Callable[[str], None]) -> list[str]:
    """Soak a home in an empty folder; returns what does not hold. `seconds`: over which the kills are spread."""
    played = Soak(folder, tasks, kills, seed, seconds)
    found: list[str] = []
    try:
        played.play()
        say(f"killed {dict(played.killer.hits.most_common())}; mloc up was started {played.service.starts} times")
        begun = time.monotonic()
        at_rest = played.come_to_rest()
        say(f"{'at rest' if at_rest else 'not at rest'} {time.monotonic() - begun:.0f} s after the last kill")
    finally:
        found += played.service.stop()
    played.service.come_and_go()
    found += played.service.stop()
    runs, again = sum(len(task.runs) for task in played.tasks), sum(len(task.runs) > 1 for task in played.tasks)
    say(f"{len(played.tasks)} tasks took {runs} runs; {again} took more, {played.submitted_again} times by hand")
    found += faults(played.service.home, played.instance, played.tasks, played.journal)
    played.instance.dispose()
    return found


def main() -> int:
    """Soak and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--tasks", type=int, default=200, help="at least; more when these end before the kills do")
    parser.add_argument("--seed", type=int, default=1, help="of the tasks, and of what is killed when")
    parser.add_argument("--minutes", type=float, default=30, help="over which the kills are spread")
    parser.add_argument("--keep", type=Path, help="an empty or new folder for the home, which is kept")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="mloc-soak-"))
    begun = time.monotonic()
    found = soak(
        folder.resolve(), given.tasks, given.kills, given.seed, given.minutes * 60, lambda t: print(t, flush=True)
    )
    for fault in found:
        print(fault)
    print(f"{len(found)} faults in {(time.monotonic() - begun) / 60:.1f} minutes")
    if not given.keep and not found:
        shutil.rmtree(folder)
    elif found:
        print(f"the home is kept: {folder}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
