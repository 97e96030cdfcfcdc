"""Work does not outlive whoever started it, also when that one died before the work could begin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from executors.parent import PARENT


def test_work_whose_starter_died_meanwhile_does_not_begin(tmp_path: Path) -> None:
    starter = subprocess.Popen(["true"])
    starter.wait()
    job = tmp_path / "job.json"
    raw = {"task_type": "echo", "echo": 1}
    job.write_text(json.dumps({"task_id": "t/s", "task_name": "t", "stage": "s", "raw": raw, "out": str(tmp_path)}))
    command = [sys.executable, "-m", "executors.host", str(job)]
    for parent, code, left in ((starter.pid, 143, False), (os.getpid(), 0, True)):
        done = subprocess.run(command, env={**os.environ, PARENT: str(parent)}, timeout=120)
        assert (done.returncode, (tmp_path / "result.json").exists()) == (code, left)
