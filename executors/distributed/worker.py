"""One process of several: `python -m executors.distributed.worker JOB.json`, started by torchrun.

The first one leaves `result.json`; the output of the others goes to `logs/rank-<n>.log`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from executors.distributed.layout import ended
from executors.host import carry_out
from executors.job import Job
from executors.parent import end_with_parent
from mloc_dagster.files.atomic import write_text


def main(path: Path) -> int:
    """Carry out the job as one rank; returns the exit code."""
    end_with_parent(signal.SIGTERM)
    job, rank = Job.read(path), int(os.environ["RANK"])
    if rank > 0:
        _redirect(job.out / "logs" / f"rank-{rank}.log")
    code = carry_out(job, keep_result=rank == 0)
    write_text(ended(job.out, rank), str(code))
    return code


def _redirect(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.__stdout__.flush() if sys.__stdout__ else None
    os._exit(code)
