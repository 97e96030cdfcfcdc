"""What a runaway command uses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from executors.sandbox.limits import MIB
from tests.executors.conftest import ROOT
from tests.executors.sandbox.conftest import Contained


def running(mark: str) -> list[int]:
    """Processes of the machine with this text in their command line."""
    return [
        p.pid for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or []) and p.pid != os.getpid()
    ]


def eventually(condition: Callable[[], bool], seconds: float = 8.0) -> bool:
    """Whether it holds before the time is over."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return holds


def test_an_endless_loop_is_ended_by_time(contained: Contained) -> None:
    ended = contained("print('begun')\nwhile True: pass", seconds=1)
    assert ended.ended_by == "time" and ended.exit_code == 137
    assert ended.stdout == "begun\n" and 1 <= ended.seconds < 4


def test_processor_time_is_limited(contained: Contained) -> None:
    ended = contained("while True: pass", cpu_seconds=1)
    assert ended.ended_by == "time" and ended.exit_code == 152 and ended.seconds < 7


def test_an_endless_loop_that_ignores_signals_is_ended_too(contained: Contained) -> None:
    source = (
        "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n  except Exception: pass\n"
    )
    assert contained(source + "while True: pass", seconds=1).ended_by == "time"


def test_a_fork_bomb_is_ended(contained: Contained) -> None:
    mark = f"bomb-{os.getpid()}-{time.monotonic_ns()}"
    ended = contained(["sh", "-c", "f() { f | f & f; }; f", mark], processes=20)
    assert ended.ended_by == "processes" and ended.seconds < 6
    assert running(mark) == []


def test_one_process_cannot_take_more_memory(contained: Contained) -> None:
    ended = contained("x = bytearray(2 * 1024 ** 3)", memory_bytes=128 * MIB)
    assert ended.ended_by == "memory" and ended.exit_code == 1 and "MemoryError" in ended.stderr


def test_several_processes_together_cannot_take_more_memory(contained: Contained) -> None:
    source = "import os, time\nfor _ in range(4): os.fork()\nx = b'x' * (60 * 1024 ** 2)\ntime.sleep(6)"
    ended = contained(source, memory_bytes=128 * MIB, processes=40)
    assert ended.ended_by == "memory" and ended.exit_code == 137 and ended.seconds < 5


def test_memory_used_as_files_counts(contained: Contained) -> None:
    source = (
        "import os, time\nkeep = []\n"
        "for n in range(8):\n    keep.append(os.memfd_create(str(n)))\n    os.write(keep[-1], b'x' * (8 * 1024 ** 2))\n"
        "time.sleep(6)"
    )
    ended = contained(source, disk_bytes=32 * MIB)
    assert ended.ended_by == "disk" and ended.seconds < 5


def test_one_file_cannot_grow_beyond_its_limit(contained: Contained, work: Path) -> None:
    ended = contained(["dd", "if=/dev/zero", "of=big", "bs=1M", "count=64"], file_bytes=4 * MIB)
    assert ended.ended_by == "disk" and ended.exit_code != 0
    assert (work / "big").stat().st_size <= 4 * MIB


@pytest.mark.parametrize("where", [".", "/tmp"])
def test_many_files_cannot_fill_the_disk(contained: Contained, where: str) -> None:
    source = (
        f"import itertools\nfor n in itertools.count():\n"
        f"    with open(f'{where}/{{n}}', 'wb') as file: file.write(b'x' * (1024 ** 2))"
    )
    ended = contained(source, disk_bytes=16 * MIB)
    assert ended.ended_by == "disk" and ended.exit_code == 137 and ended.seconds < 6


def test_deleted_files_count_while_they_are_open(contained: Contained) -> None:
    source = (
        "import os, time\nkeep = []\n"
        "for n in range(12):\n    keep.append(open('gone', 'wb'))\n    os.unlink('gone')\n"
        "    keep[-1].write(b'x' * (4 * 1024 ** 2)); keep[-1].flush()\n"
        "time.sleep(6)"
    )
    ended = contained(source, disk_bytes=16 * MIB)
    assert ended.ended_by == "disk" and ended.seconds < 5


def test_many_empty_files_are_ended(contained: Contained) -> None:
    source = "import itertools\nfor n in itertools.count(): open(str(n), 'w').close()"
    assert contained(source, files=500).ended_by == "disk"


def test_what_lay_in_the_folder_before_does_not_count(contained: Contained, work: Path) -> None:
    (work / "before").write_bytes(b"x" * (8 * MIB))
    ended = contained("import time; open('new', 'wb').write(b'x' * 1024 ** 2); time.sleep(0.3)", disk_bytes=2 * MIB)
    assert ended.exit_code == 0 and ended.ended_by is None


def test_shared_memory_is_small(contained: Contained) -> None:
    ended = contained(["dd", "if=/dev/zero", "of=/dev/shm/big", "bs=1M", "count=64"])
    assert ended.exit_code != 0 and "No space left on device" in ended.stderr and ended.ended_by == "disk"


def test_long_output_is_cut_with_a_note(contained: Contained) -> None:
    ended = contained("print('a' * 5000); print('end')", output_bytes=1000)
    assert ended.exit_code == 0 and ended.ended_by is None
    assert ended.stdout == "a" * 1000 + "\n[4005 more bytes were cut: only the first 1000 are kept]"


def test_endless_output_is_ended(contained: Contained) -> None:
    ended = contained(["yes"], output_bytes=1000)
    assert ended.ended_by == "output" and ended.stdout.startswith("y\ny\n") and ended.seconds < 5


@pytest.mark.parametrize("start", ["{0} &", "setsid {0} &", "(nohup setsid {0} >/dev/null 2>&1 &)"])
def test_nothing_survives_the_end(contained: Contained, start: str, work: Path) -> None:
    late = work / "late"
    (work / "linger.sh").write_text(f"sleep 1; touch {late}; sleep 20")
    ended = contained(["sh", "-c", start.format("sh linger.sh") + "\necho done"])
    assert ended.stdout == "done\n" and ended.exit_code == 0 and ended.seconds < 4
    time.sleep(1.5)
    assert not late.exists()


def test_it_ends_with_the_process_that_asked(contained: Contained, work: Path) -> None:
    mark = f"orphan-{os.getpid()}-{time.monotonic_ns()}"
    assert contained(["true"]).exit_code == 0
    source = (
        "from pathlib import Path; from executors.sandbox import Limits, run\n"
        f"run(['sh', '-c', 'touch begun; sleep 60; true', {mark!r}], work=Path({str(work)!r}), limits=Limits())"
    )
    host = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, env=os.environ | {"TMPDIR": str(work.parent)})
    try:
        assert eventually(lambda: (work / "begun").exists())
        assert running(mark)
    finally:
        host.kill()
        host.wait()
    assert eventually(lambda: running(mark) == [])
