"""What becomes of an attempt elsewhere when machines are away, watchers are killed, or the store has lost a part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from executors.job import Job
from executors.remote import fence
from executors.remote.document import RemoteResult
from executors.remote.store import Store, StoreError, files_below
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.local.outcome import StepFailed
from mloc_dagster.placement.remote import run as remote
from mloc_dagster.placement.remote.carrier import Carrier, Ending, Unreachable
from mloc_dagster.placement.remote.holding import give_up_unwatched, hold
from mloc_dagster.placement.remote.run import Errand, adopt, finished, follow
from mloc_dagster.placement.remote.ship import collect
from mloc_dagster.store.home import Home


class Attempt:
    """An attempt that runs until it is ended, on a machine that may be away."""

    worker, devices, place = "far", (), "container mloc-a on far"

    def __init__(self, attempt: str = "a1", away: int = 0, error: Exception | None = None) -> None:
        self.attempt, self.away, self.error = attempt, away, error
        self.code: int | None = None
        self.running = self.there = True

    def stream(self) -> Iterator[bytes]:
        if self.error is not None:
            raise self.error
        while self.running:
            time.sleep(0.01)
            yield b""

    def ending(self) -> Ending | None:
        self._asked()
        return None if self.running else Ending(self.code)

    def stop(self) -> None:
        self._asked()
        self.running = False

    kill = stop

    def remove(self, *, failed: bool) -> None:
        self._asked()
        self.there = False

    def _asked(self) -> None:
        if self.away > 0:
            self.away -= 1
            raise Unreachable("the engine starts anew")


class Machine:
    """A carrier with attempts; does not answer the first few questions."""

    grace = 1.0

    def __init__(self, *attempts: Attempt, away: int = 0) -> None:
        self.attempts, self.away = attempts, away

    def find(self, job: str) -> list[Attempt]:
        if self.away > 0:
            self.away -= 1
            raise Unreachable("no route to host")
        return [one for one in self.attempts if one.there]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("mloc_dagster.placement.remote.follow._AGAIN_SECONDS", 0.01)


@pytest.fixture
def errand(tmp_path: Path) -> Errand:
    home = Home(tmp_path / "home")
    folder = home.work / ("0" * 64)
    folder.mkdir(parents=True)
    job = cast(Job, SimpleNamespace(out=folder, task_name="task"))
    spec = SimpleNamespace(resources=SimpleNamespace(replicas=1), parallel=None, task_type="echo")
    stage = cast(Any, SimpleNamespace(name="s", spec=spec))
    return Errand(Store(f"file://{tmp_path}/store"), stage, job, folder.name, "t", "run-1", home)


def watched(errand: Errand, attempt: Attempt, notes: list[Any], **changes: Any) -> Any:
    given = {"cancelled": lambda: True, "lost": lambda: "", "lost_after": 5.0, **changes}
    return follow(errand, attempt, "begins", report=notes.append, **given)


def taken(errand: Errand, machines: dict[str, Machine], notes: list[Any], lost_after: float = 5.0) -> Any:
    carriers = cast(dict[str, Carrier], machines)
    return adopt(errand, carriers, report=notes.append, cancelled=lambda: False, lost_after=lost_after)


def test_a_cancel_is_said_again_until_the_engine_answers(errand: Errand) -> None:
    notes: list[Any] = []
    attempt = Attempt(away=4)
    assert watched(errand, attempt, notes).cancelled
    assert not attempt.running and not attempt.there
    assert notes == [{"note": "begins"}]


def test_what_cannot_be_ended_is_told_and_given_up(errand: Errand) -> None:
    hold(errand.store, errand.folder, errand.elsewhere, "a1", "far")
    notes: list[Any] = []
    assert watched(errand, Attempt(away=10**6), notes, lost_after=0.05).cancelled
    assert "container mloc-a on far may still run" in notes[-1]["note"]
    assert fence.holder(errand.store, errand.identity) == fence.Holder(attempt=""), "it ends when it sees that"


def test_what_cannot_be_followed_is_ended_and_told(errand: Errand) -> None:
    attempt = Attempt(error=RuntimeError("an answer that nobody knows"))
    with pytest.raises(StepFailed, match="cannot be followed and is ended: RuntimeError: an answer") as failed:
        watched(errand, attempt, [], cancelled=lambda: False)
    assert failed.value.cause is Cause.INTERNAL and not attempt.running


def test_an_interruption_at_the_first_note_ends_it(errand: Errand) -> None:
    def interrupted(told: object) -> None:
        raise KeyboardInterrupt

    attempt = Attempt()
    with pytest.raises(KeyboardInterrupt):
        follow(errand, attempt, "begins", report=interrupted, cancelled=lambda: False, lost=str, lost_after=5.0)
    assert not attempt.running


def test_the_worker_that_holds_the_work_is_waited_for(errand: Errand) -> None:
    hold(errand.store, errand.folder, errand.elsewhere, "a1", "far")
    attempt, notes = Attempt(), []
    machines = {"far": Machine(attempt, away=3), "other": Machine()}
    assert taken(errand, machines, notes) is attempt
    assert [note["note"] for note in notes] == ["s may go on on far, which does not answer; it is waited for"]
    assert taken(errand, {"far": Machine(away=10**6)}, [], 0.05) is None, "not for ever"


def test_nobody_waits_for_a_worker_that_holds_nothing(errand: Errand) -> None:
    hold(errand.store, errand.folder, errand.elsewhere, "a1", "other")
    machines = {"far": Machine(away=1), "other": Machine()}
    assert taken(errand, machines, notes := []) is None and not notes
    assert machines["far"].away == 0, "it was asked once"


def test_what_a_killed_watcher_leaves_is_given_up_when_its_run_is_over(errand: Errand) -> None:
    hold(errand.store, errand.folder, errand.elsewhere, "a1", "far")
    asked: list[str] = []
    assert give_up_unwatched(errand.home, lambda run_id: bool(asked.append(run_id))) == 0
    assert asked == ["run-1"]
    found = fence.holder(errand.store, errand.identity)
    assert found is not None and found.attempt == "a1"
    assert give_up_unwatched(errand.home, lambda run_id: True) == 1
    assert fence.holder(errand.store, errand.identity) == fence.Holder(attempt="")
    assert give_up_unwatched(errand.home, lambda run_id: True) == 0, "once"


def result_of(errand: Errand, attempt: str, folder: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_text("w" * 100)
    (folder / "result.json").write_text("{}")
    out = errand.store.push(files_below(folder))
    errand.store.write(f"{errand.identity}/{attempt}/result.json", RemoteResult(code=0, out=out, at="/there"))


def test_a_result_of_which_a_part_is_lost_counts_for_nothing(errand: Errand, tmp_path: Path) -> None:
    result_of(errand, "a1", tmp_path / "made")
    for blob in (tmp_path / "store" / "blobs").rglob("*"):
        if blob.is_file() and blob.read_bytes() == b"w" * 100:
            blob.unlink()
    notes: list[Any] = []
    assert not finished(errand, notes.append)
    assert "its result cannot be read" in notes[0]["note"] and "lifecycle" in notes[0]["note"]
    assert not (errand.folder / "result.json").exists(), "else it would be taken for a whole result"
    errand = replace(errand, store=Store(errand.store.url))
    result_of(errand, "a2", tmp_path / "again")
    assert finished(errand, notes.append) and (errand.folder / "sub" / "weights").is_file()


def test_the_failure_of_an_attempt_is_its_own(errand: Errand) -> None:
    said = {"kind": "user", "message": "HF_TOKEN is not set", "hint": ""}
    errand.store.write(f"{errand.identity}/a1/result.json", RemoteResult(code=2, error=said))
    errand.store.write(f"{errand.identity}/a2/result.json", RemoteResult(code=-9))
    for name, told in (("a1", True), ("a2", False)):
        attempt = Attempt(name)
        attempt.running, attempt.code = False, 2
        watched(errand, attempt, [], cancelled=lambda: False)
        assert (errand.folder / "error.json").exists() == told


def test_a_result_cannot_reach_out_of_its_folder(errand: Errand, tmp_path: Path) -> None:
    victim = errand.home.root / "victim"
    victim.write_text("precious")
    (tmp_path / "x").touch()
    out = errand.store.push({"../../victim": tmp_path / "x"})
    with pytest.raises(StoreError, match="leaves its folder"):
        collect(errand.store, RemoteResult(code=0, out=out), errand.folder)
    assert victim.read_text() == "precious"
