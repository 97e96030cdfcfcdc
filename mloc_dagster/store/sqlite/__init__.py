"""Dagster's SQLite storage, with the same files and schema, without its cost for each statement.

Stock opens a connection for each statement, and makes the database of a new run table by table. Here connections are
kept, and a new run's database is a copy of a template. Stock Dagster opens the same folder, also beside this one.

**Durability.** Databases are in WAL mode with `synchronous=NORMAL`. What was acknowledged is in the operating system's
hands: it survives `kill -9` of any process, at any moment. It reaches the disk when the log is checkpointed: at the
latest when the last process that has the database open closes it, as a run's worker does at its end. So a loss of
power can cost the last events of runs that were going on; it cannot make a database unreadable. `synchronous: full`
in `dagster.yaml` waits for the disk at each event, as stock does.
"""

from mloc_dagster.store.sqlite.storage import SqliteStorage

__all__ = ["SqliteStorage"]
