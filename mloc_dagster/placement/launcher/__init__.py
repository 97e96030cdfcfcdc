"""Runs on this machine, in processes forked from one that is warm, else started anew.

A **pool** is a process that has Dagster, our definitions and the instance loaded, and does nothing with them: it runs
no code of a task, has no thread and holds no database connection. It forks one child for each run. The child takes
the submitter's environment, folder and umask in place of the pool's, is a session of its own, and ends with its run.
Light steps run inside of that child, heavy ones in further processes (`placement.local.process`).

While one run follows the other, a child may go on to the next one, where that is safe: all steps of the run were light
work of our own executors and it succeeded, so no code of others and no heavy library has been in the process; it has no
thread and no child left, its database connections are closed, the next run comes with the same environment, folder and
umask, and nobody had asked for the end of the run before (`workers.tell_to_end`). After fifty runs, or a second
without a request, it ends. Code of other packages never shares a process with another run.

A pool belongs to one home and one environment (`fingerprint`), ends when it was idle for MLOC_POOL_IDLE seconds
(default 600), when its home goes away, or when a file that it has loaded changes; runs that are going on stay. Without
a pool a run starts cold, with a warning.
"""

from mloc_dagster.placement.launcher.launcher import LocalRunLauncher
from mloc_dagster.placement.launcher.workers import WORKER, worker_tag

__all__ = ["WORKER", "LocalRunLauncher", "worker_tag"]
