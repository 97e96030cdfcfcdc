"""Attempts between a run and a machine: each byte of a log once, each end once, nothing after one is given up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from executors.remote.spool import SEGMENT, Spool
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.pull.carrier import PullCarrier
from mloc_dagster.placement.pull.desk import Desk, End, Gap, GivenUp, PullOrder
from mloc_dagster.placement.remote.carrier import Order, Sign
from mloc_dagster.placement.workers.declared import fleet_of, load_fleet
from mloc_dagster.placement.workers.outbound import CONNECTED_SECONDS, Pull, Registered, Registry
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec import SpecError
from mloc_dagster.store.home import Home

ONE = "0123456789ab"


@pytest.fixture
def own(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def offered(home: Home) -> Desk:
    desk = Desk(home)
    desk.offer(PullOrder(attempt=ONE, job="jobs/w/t", key=f"jobs/w/t/{ONE}", worker="far", grace=5))
    return desk


def test_each_byte_once(own: Home) -> None:
    desk = offered(own)
    assert desk.append(ONE, 0, b"one\ntw") == 6
    assert desk.append(ONE, 0, b"one\ntw") == 6 and desk.append(ONE, 3, b"\ntwo\n") == 8
    with pytest.raises(Gap) as gap:
        desk.append(ONE, 9, b"later")
    assert gap.value.size == 8 and desk.read(ONE, 0) == b"one\ntwo\n" and desk.read(ONE, 4) == b"two\n"


def test_the_first_end_is_believed_and_nothing_comes_after_it(own: Home) -> None:
    desk = offered(own)
    desk.end(ONE, End(code=0))
    desk.end(ONE, End(code=1))
    assert desk.ending(ONE) == End(code=0) and desk.append(ONE, 0, b"late") == 0
    desk.give_up(ONE)
    for bring in (lambda: desk.end(ONE, End(code=0)), lambda: desk.append(ONE, 0, b"late")):
        with pytest.raises(GivenUp):
            bring()
    assert list(desk.orders()) == [] and desk.order("../tokens") is None


def test_an_attempt_as_its_run_sees_it(own: Home) -> None:
    carrier = PullCarrier("far", Pull(away_seconds=1), own)
    environment = {"TOKEN": "hunter2", "MLOC_REMOTE_ROOT": "/tmp/mloc"}
    order = Order(job="jobs/w/t", attempt=ONE, store="s", key="k", environment=environment, cpu=None, share=0, memory=0)
    started, desk = carrier.start(order), Desk(own)
    found = desk.order(ONE)
    assert found is not None and found.names == ("TOKEN",)
    assert not any(b"hunter2" in path.read_bytes() for path in own.root.rglob("*") if path.is_file())
    stream = started.stream()
    assert isinstance(next(stream), Sign), "it waits for its machine"
    desk.append(ONE, 0, b"line\n")
    Registry(own).heard("far")
    assert next(block for block in stream if not isinstance(block, Sign)) == b"line\n"
    assert [one.attempt for one in carrier.find("jobs/w/t")] == [ONE] and not carrier.find("jobs/other/t")
    assert started.ending() is None
    begun = time.monotonic()
    assert [block for block in stream if not isinstance(block, Sign)] == [], "it falls silent, and is given up"
    ending = started.ending()
    assert ending is not None and ending.cause is Cause.WORKER_LOST and time.monotonic() - begun < 10
    assert desk.order(ONE) is None


def test_machines_that_nobody_declared_are_workers_while_they_are_connected(
    own: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLOC_WORKERS", raising=False)
    monkeypatch.delenv("MLOC_ARTIFACTS", raising=False)
    assert not fleet_of(own).engines
    registry = Registry(own)
    registry.enter(Registered(name="far", instance="0" * 32, host="h", version="1", cpu=2000, memory=1 << 30))
    fleet = fleet_of(own)
    assert (fleet.workers[-1].name, fleet.workers[-1].state) == ("far", "ready")
    assert fleet.engines == {"far": Pull()} and fleet.artifacts == f"file://{own.root}/artifacts"
    moment = time.time() - CONNECTED_SECONDS - 1
    os.utime(own.root / "pull" / "workers" / "far.seen", (moment, moment))
    assert fleet_of(own).workers[-1].state == "gone"


def test_a_worker_that_is_away_takes_nothing_new_and_stays_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")

    def state(entered: str) -> str:
        ledger.register("here", [Worker("far", 1000, 1, (), entered)], 0.0)  # pyright: ignore[reportArgumentType]
        return ledger.snapshot()[0][0].worker.state

    assert [state(one) for one in ("ready", "gone", "ready")] == ["ready", "gone", "ready"]
    ledger.set_state("far", "cordoned")
    assert [state(one) for one in ("ready", "gone", "ready")] == ["cordoned"] * 3


def test_a_worker_has_one_place(tmp_path: Path) -> None:
    path = tmp_path / "workers.yaml"
    path.write_text(
        "workers: [{name: far, cpu: 1, memory: 1Gi, pull: {}, kubernetes: {image: m}}]\nartifacts: s3://b\n"
    )
    with pytest.raises(SpecError) as error:
        load_fleet(path)
    assert "pull: is a second place for its stages" in str(error.value.faults[0])
    path.write_text("workers: [{name: far, cpu: 1, memory: 1Gi, pull: {aways: 1}}]\n")
    with pytest.raises(SpecError, match="away_seconds"):
        load_fleet(path)


def test_a_spool_keeps_order_and_drops_what_has_arrived(tmp_path: Path) -> None:
    spool, data = Spool(tmp_path / "spool"), os.urandom(3 * SEGMENT + 5)
    for start in range(0, len(data), SEGMENT // 2):
        spool.write(data[start : start + SEGMENT // 2])
    assert (spool.first, spool.end) == (0, len(data))
    got = b""
    while block := spool.read(len(got), 100_000):
        got += block
        spool.drop(len(got))
    assert got == data and spool.first >= 3 * SEGMENT // 2 and spool.end == len(data)
    again = Spool(tmp_path / "spool")
    again.write(b"more")
    assert again.read(len(data)) == b"more" and again.read(0) == b""
