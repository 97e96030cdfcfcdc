"""A control group bounds what is in it, tells what it refused, and ends all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from executors import cgroup
from executors.cgroup import Cgroup

MIB = 1024 * 1024
ROOM = Cgroup.make()
if ROOM:
    ROOM.end()
pytestmark = pytest.mark.skipif(ROOM is None, reason="this user cannot make control groups here")


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """A group of at most 64 MiB and 8 processes."""
    made = Cgroup.make(memory_bytes=64 * MIB, processes=8)
    assert made is not None
    yield made
    made.end()
    assert not made.pids.exists() and not made.memory.exists()


def run(group: Cgroup, code: str) -> int:
    return subprocess.run(
        group.entering([sys.executable, "-c", code]), check=False, stderr=subprocess.DEVNULL
    ).returncode


def test_memory_is_bounded_and_told(group: Cgroup) -> None:
    assert run(group, "print(len(b'x' * 1024))") == 0 and group.kills() == 0
    assert run(group, "print(len(b'x' * (200 << 20)))") == -9 and group.kills() == 1


def test_processes_are_bounded_and_told(group: Cgroup) -> None:
    code = "import os, time\nfor _ in range(5): os.fork()"
    assert run(group, "import os; os.fork()") == 0 and group.refused_forks() == 0
    run(group, code)
    assert group.refused_forks() > 0


def test_the_end_takes_what_left_the_process_group_too(group: Cgroup) -> None:
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)"
    assert run(group, code) == 0
    pids = (group.pids / "cgroup.procs").read_text().split()
    assert pids
    group.end()
    time.sleep(0.1)
    assert not [pid for pid in pids if psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != "zombie"]


def test_what_a_killed_process_left_is_removed() -> None:
    code = "import os, signal\nfrom executors.cgroup import Cgroup\n"
    code += "print(Cgroup.make(processes=4).pids, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(told.stdout.strip())
    assert told.returncode == -9 and left.is_dir()
    made = Cgroup.make()
    assert made is not None and not left.exists()
    made.end()


def test_version_2_is_bounded_where_a_place_above_gives_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tree of plain files: which place is taken, and what is written there."""
    own = tmp_path / "user.slice" / "session.scope"
    own.mkdir(parents=True)
    for place, controllers in ((own, ""), (own.parent, "cpu memory pids"), (tmp_path, "memory pids")):
        (place / "cgroup.subtree_control").write_text(controllers)
    monkeypatch.setattr(cgroup, "_mounts", lambda kind, controller: [tmp_path] if kind == "cgroup2" else [])
    monkeypatch.setattr(cgroup, "_own", lambda controller: "/user.slice/session.scope")
    made = Cgroup.make(memory_bytes=64 * MIB, processes=8)
    assert made is not None and made.memory == made.pids and made.pids.parent == own.parent
    assert made.pids.name.startswith(f"mloc-{os.getpid()}-")
    written = {path.name: path.read_text() for path in made.pids.iterdir()}
    assert written == {
        "pids.max": "8", "memory.max": str(64 * MIB), "memory.oom.group": "1", "memory.swap.max": "0",
    }  # fmt: skip
    (made.memory / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\n")
    assert made.kills() == 3
