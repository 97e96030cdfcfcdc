"""A forked child ends by itself, and says why when that is not what it was to do."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os
from mloc_dagster.processes.forking import fork
def work():
    raise RuntimeError("no such thing")
pid = fork(work, lambda: None)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_an_error_of_a_child_is_in_its_log() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "70\n" and "RuntimeError: no such thing" in done.stderr
