"""Of two attempts at the same work, the one that does not hold it any more ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from executors.remote import fence
from executors.remote.fence import Fence, hold, holder
from executors.remote.store import Store

WORK = "jobs/w/t"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}")


def test_the_last_that_was_started_holds_the_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(fence.time, "monotonic", lambda: float(next(clock)))
    assert holder(store, WORK) is None
    old = Fence(store, f"{WORK}/a1", 60)
    assert not old.passed(), "nobody holds it"
    hold(store, WORK, "a1")
    assert not old.passed()
    hold(store, WORK, "a2")
    assert not old.passed(), "it is named before its start, which may adopt the old one"
    hold(store, WORK, "a1")
    assert not old.passed()
    hold(store, WORK, "a2")
    assert [old.passed() for _ in range(2)] == [False, True]
    assert [Fence(store, f"{WORK}/a2", 60).passed() for _ in range(3)] == [False] * 3
    assert store.names(WORK) == [], "it does not count as an attempt"


def test_it_looks_now_and_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(store, WORK, "a2")
    looked = Fence(store, f"{WORK}/a1", 60)
    assert not any(looked.passed() for _ in range(50)), "not more often than every ten seconds"
