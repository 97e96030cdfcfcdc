"""Indexing that is cut short."""

from __future__ import annotations

import os
import signal
import time

import pytest

from executors.base import ExecutorError
from executors.host import execute
from tests.executors.conftest import start_host
from tests.executors.rag.conftest import Stages


def test_a_kill_while_indexing_leaves_the_old_index(stages: Stages) -> None:
    old = stages.indexed()
    many = {f"n{number}.txt": f"Note {number} tells of thing {number * 7}. " * 20 for number in range(400)}
    for name, text in many.items():
        (stages.notes / name).write_text(text, "utf-8")
    process = start_host(stages.job("rag_indexing", "index", {}))
    wal = stages.root / "cache" / "vectors"
    before = sum(file.stat().st_size for file in wal.iterdir())
    until = time.monotonic() + 120
    while sum(file.stat().st_size for file in wal.iterdir()) <= before and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert stages.asked(old["index_path"], {})["metrics"]["mrr"] == 1.0


def test_an_index_is_never_written_outside_of_the_run_folder(stages: Stages) -> None:
    job = stages.job(
        "rag_indexing", "index", {"vector_store": {"path": "../x"}, "documents": {"source": {"path": "n"}}}
    )
    with pytest.raises(ExecutorError, match="names no folder inside the run folder"):
        execute(job)
