"""The load benchmark in its short form, on both storages: every request is answered and tasks run meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import postgres

ROOT = Path(__file__).absolute().parents[2]
_ON_POSTGRES = [
    pytest.mark.postgres,
    pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or ""),
]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), pytest.param(("--postgres",), marks=_ON_POSTGRES)], ids=["sqlite", "postgres"])
def test_tasks_are_taken_in_at_a_steady_rate(more: tuple[str, ...], tmp_path: Path) -> None:
    """How fast is for a quiet machine to say; here it must be whole."""
    command = [sys.executable, str(ROOT / "benchmarks" / "submit_load.py"), "--seconds", "10", "--rate", "8"]
    done = subprocess.run(
        [*command, "--most-ms", "60000", *more], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["requests"], told["errors"]) == (80, 0) and told["tasks_ended_meanwhile"] > 0
