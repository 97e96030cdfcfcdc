"""What may go goes, what someone needs stays, also while others work."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from pathlib import Path

import pytest
from dagster import DagsterInstance
from typer.testing import CliRunner

from executors.job import Job
from executors.remote.cache import NodeCache, prune
from executors.remote.document import Input, RemoteJob, RemoteResult, State
from executors.remote.store import Store, StoreError
from mloc_dagster.cli.app import app
from mloc_dagster.files.atomic import is_at
from mloc_dagster.placement.retention.artifacts import old_artifacts
from mloc_dagster.placement.retention.caches import least_used
from mloc_dagster.placement.retention.found import DAY, Found
from mloc_dagster.placement.retention.runs import old_runs
from mloc_dagster.placement.retention.work import broken_uploads, lock_of, old_locks, old_work
from mloc_dagster.sources.cache import Cache
from mloc_dagster.store.home import Home
from tests.definitions.conftest import home, instance
from tests.placement.conftest import Run, run

__all__ = ["home", "instance", "run"]
OLD, YOUNG = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path / 'artifacts'}")


def put(store: Store, folder: Path, work: str, **texts: str) -> str:
    """Leave what an attempt leaves: an input, a result, a state; returns the digest of the input."""
    folder.mkdir(parents=True, exist_ok=True)
    trees = []
    for name, text in texts.items():
        (folder / name).write_text(text)
        trees.append(store.push({name: folder / name}))
    job = Job(task_id="t/s", task_name="t", stage="s", raw={}, out=folder)
    given = tuple(Input(at=f"/{tree}", tree=tree) for tree in trees[:1])
    store.write(f"jobs/{work}/t/1/job.json", RemoteJob(version="1", work=work, job=job, inputs=given, grace=1, sync=1))
    store.write(f"jobs/{work}/t/1/result.json", RemoteResult(code=0, out=trees[-1]))
    store.write(f"jobs/{work}/state.json", State(out=trees[-1]))
    return trees[0]


def age(folder: Path, days: float) -> None:
    """Have everything below a folder, and it itself, changed so many days ago."""
    moment = time.time() - days * DAY
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (moment, moment))


def remove(found: list[Found]) -> int:
    return sum(one.remove() for one in found)


def test_old_work_goes_from_the_store_and_only_what_nothing_else_leads_to(
    home: Home, store: Store, tmp_path: Path
) -> None:
    old = put(store, tmp_path / "one", OLD, both="shared by both", mine="only of the old one")
    age(tmp_path / "artifacts", 10)
    young = put(store, tmp_path / "two", YOUNG, both="shared by both", mine="only of the young one")
    found = list(old_artifacts(home, store, 7))
    assert {one.kind for one in found} == {"jobs", "blobs"} and found[0].name == OLD[:12]
    listing = store.tree(old)
    assert remove(found) == sum(one.size for one in found) > 0
    assert (
        {one.key.split("/")[1] for one in store.all("jobs")} == {YOUNG}
        and old == young
        and store.tree(young) == listing
    )
    assert store.piece(listing.files[0].pieces[0]) == b"shared by both"
    assert list(old_artifacts(home, store, 7)) == [] and remove(found) == 0


def test_what_someone_works_on_stays(home: Home, store: Store, tmp_path: Path) -> None:
    put(store, tmp_path / "one", OLD, a="x", b="y")
    age(tmp_path / "artifacts", 10)
    found = list(old_artifacts(home, store, 7))
    with lock_of(home, OLD).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert list(old_artifacts(home, store, 7)) == []
        assert remove([one for one in found if one.kind == "jobs"]) == 0, "taken up between the look and the removal"
    assert len(list(old_artifacts(home, store, 7))) == len(found)


def test_what_is_pushed_again_is_not_removed_before_a_job_names_it(home: Home, store: Store, tmp_path: Path) -> None:
    put(store, tmp_path / "one", OLD, a="again", b="y")
    age(tmp_path / "artifacts", 10)
    found = list(old_artifacts(home, store, 7))
    tree = Store(store.url).push({"a": tmp_path / "one" / "a"})
    remove(found)
    assert store.piece(store.tree(tree).files[0].pieces[0]) == b"again"


def test_removal_while_a_run_pushes_and_reads(home: Home, store: Store, tmp_path: Path) -> None:
    over, seen, faults = threading.Event(), 0, []

    def work() -> None:
        nonlocal seen
        folder = tmp_path / "busy"
        while not over.is_set():
            mine, number = Store(store.url), seen % 7
            digest = f"{number:064d}"
            with lock_of(home, digest).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    tree = put(mine, folder / str(number), digest, a=f"text {number}", b="y")
                    job = mine.read(f"jobs/{digest}/t/1/job.json", RemoteJob)
                    assert job is not None and mine.piece(mine.tree(tree).files[0].pieces[0])
                except (StoreError, AssertionError) as error:
                    faults.append(error)
            seen += 1

    home.work.mkdir(parents=True)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        removed, until = 0, time.monotonic() + 5
        while time.monotonic() < until:
            for number in range(7):
                folder = tmp_path / "artifacts" / "jobs" / f"{number:064d}"
                with lock_of(home, f"{number:064d}").open("a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if folder.exists():
                        age(folder, 10)
            with lock_of(home, f"{3:064d}").open("a") as lock:  # between two runs: nothing is on its way
                fcntl.flock(lock, fcntl.LOCK_EX)
            removed += remove([one for one in old_artifacts(home, store, 7)])
    finally:
        over.set()
        thread.join()
    assert removed and seen > 7 and not faults


def test_unfinished_work_goes_when_it_is_old_and_nobody_works_on_it(home: Home) -> None:
    for digest in (OLD, YOUNG):
        (home.work / digest / "checkpoints").mkdir(parents=True)
        (home.work / digest / "checkpoints" / "weights").write_bytes(bytes(1000))
    age(home.work / OLD, 40)
    with lock_of(home, OLD).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert list(old_work(home, 30)) == []
    found = list(old_work(home, 30))
    assert [(one.name, one.size) for one in found] == [(OLD[:12], 1000)]
    (home.work / OLD / "new").touch()
    assert remove(found) == 0, "it was taken up meanwhile"
    age(home.work / OLD, 40)
    assert remove(found) == 1000 and sorted(path.name for path in home.work.glob("*[!k]")) == [YOUNG]
    assert list(old_locks(home, 30)) == []
    age(home.work, 40)
    found = list(old_locks(home, 30))
    assert [(one.kind, one.name) for one in found] == [("locks", "1")], "that of the young one has its folder"
    with lock_of(home, OLD).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remove(found) == 0 and lock_of(home, OLD).exists(), "someone holds it"
    waiting = lock_of(home, OLD).open("a")
    assert remove(found) == 0 and not lock_of(home, OLD).exists()
    assert not is_at(waiting, lock_of(home, OLD)), "who waited for it sees that it is gone"
    waiting.close()
    half = home.root / "pull" / "halves" / OLD
    half.parent.mkdir(parents=True)
    half.write_bytes(bytes(10))
    assert list(broken_uploads(home)) == []
    age(half.parent, 2)
    assert remove(list(broken_uploads(home))) == 10


def test_old_runs_go_and_the_newest_success_of_each_task_stays(run: Run, instance: DagsterInstance, home: Home) -> None:
    ids = [run("echo", f"echo: {{text: {number}}}", name="one").run_id for number in range(3)]
    failed = run("echo", "echo: {text: '${NO_SUCH_SECRET}'}", name="two").run_id
    assert list(old_runs(instance, home, 1)) == []
    found = list(old_runs(instance, home, 0))
    assert {one.name for one in found} == {one[:8] for one in (*ids[:2], failed)}
    remove(found)
    assert [one.run_id for one in instance.get_runs()] == [ids[2]]
    assert not instance.all_logs(ids[0]) and instance.all_logs(ids[2])


def test_pulled_models_go_by_least_use(instance: DagsterInstance, home: Home, run: Run) -> None:
    cache = Cache(home.cache)

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(bytes(1000))

    for days, name in enumerate(("newest", "middle", "oldest")):
        stored = cache.fetch(name, fill)
        moment = time.time() - (days + 1) * DAY
        os.utime(stored.path.with_name(f"{stored.path.name}.json"), (moment, moment))
    assert list(least_used(instance, home, 5000)) == []
    found = list(least_used(instance, home, 1000))
    assert [one.name[:6] for one in found] == ["oldest", "middle"]
    assert cache.look("oldest") is not None  # which is a use
    assert remove(found) == 1000
    assert cache.look("middle") is None and cache.look("oldest") is not None and cache.look("newest") is not None


def test_inputs_on_a_machine_are_bounded_and_stay_while_they_are_used(store: Store, tmp_path: Path) -> None:
    caches, digests = [], []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
        digests.append(store.push({name: tmp_path / name}))
        caches.append(NodeCache(tmp_path / "inputs", store))
        caches[-1].folder(digests[-1])
        caches[-1].folder(digests[-1])
    assert prune(tmp_path / "inputs", 0) == [], "both are in use"
    caches[0].close()
    assert [one.path.name for one in prune(tmp_path / "inputs", 0, dry=True)] == [digests[0]]
    assert [one.size for one in prune(tmp_path / "inputs", 0)] == [3000]
    assert not (tmp_path / "inputs" / digests[0]).exists() and (tmp_path / "inputs" / digests[1]).exists()
    caches[1].close()
    assert prune(tmp_path / "inputs", 3000) == [] and len(prune(tmp_path / "inputs", 2999)) == 1


def test_the_command_shows_first_and_removes_when_it_is_told(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: DagsterInstance
) -> None:
    monkeypatch.setenv("MLOC_ARTIFACTS", f"file://{tmp_path / 'artifacts'}")
    (home.root / "workers.yaml").write_text("workers: [{name: far, cpu: 1, memory: 1Gi, pull: {}}]\n")
    put(Store(f"file://{tmp_path / 'artifacts'}"), tmp_path / "one", OLD, a="x", b="y")
    age(tmp_path / "artifacts", 10)

    def gc(*more: str) -> dict:
        answer = CliRunner().invoke(app, ["--home", str(home.root), "gc", "--json", *more])
        assert answer.exit_code == 0, answer.output
        return json.loads(answer.stdout)

    shown = gc()
    assert shown["kinds"]["jobs"][0] == 1 and shown["kinds"]["blobs"][0] == 4 and not shown["removed"]
    assert gc("--remove")["kinds"] == shown["kinds"] and gc()["found"] == []
    wrong = CliRunner().invoke(app, ["--home", str(home.root), "gc", "--work-older-than", "soon"])
    assert wrong.exit_code == 2 and "write 12h, 7d or 4w" in wrong.output
