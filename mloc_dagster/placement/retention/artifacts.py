"""What remote steps have left in the artifact store.

Documents of a piece of work (`jobs/<work>/`) go when nobody works on it and the newest is old enough: what succeeded is
in the results folder. Blobs go when no document that stays leads to them and they were not touched for a day, at
least: whoever finds a blob there and does not send it again has touched it (`Store`), before a document names it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

from executors.remote.document import JOB, RESULT, STATE, RemoteJob, RemoteResult, State
from executors.remote.store import Kept, Store, StoreError
from mloc_dagster.files.atomic import held
from mloc_dagster.placement.retention.found import DAY, Found
from mloc_dagster.placement.retention.work import lock_of
from mloc_dagster.store.home import Home

GRACE_DAYS = 1.0
"""A blob that was touched within this time stays, whatever leads to it."""


def old_artifacts(home: Home, store: Store, days: float) -> Iterator[Found]:
    """Yield what may go from a store. Raises StoreError."""
    jobs: dict[str, list[Kept]] = defaultdict(list)
    for one in store.all("jobs"):
        jobs[one.key.split("/")[1]].append(one)
    old = {work for work, documents in jobs.items() if _is_old(home, store, work, documents, days)}
    needed = _reached(store, [one for work, documents in jobs.items() if work not in old for one in documents])
    for work in sorted(old):
        size = sum(one.size for one in jobs[work])
        why = f"nobody has worked on it for {days:g} days"
        yield Found("jobs", work[:12], size, why, partial(_remove_job, home, store, work, days))
    for blob in store.all("blobs"):
        digest = blob.key.rpartition("/")[2]
        if digest not in needed and blob.age > GRACE_DAYS * DAY:
            yield Found("blobs", digest[:12], blob.size, "no job leads to it", partial(_remove_blob, store, blob))


def _is_old(home: Home, store: Store, work: str, documents: list[Kept], days: float) -> bool:
    if min(one.age for one in documents) <= days * DAY:
        return False
    with held(lock_of(home, work)) as free:
        return free


def _reached(store: Store, documents: list[Kept]) -> set[str]:
    """Digests of all that documents lead to: listings, and the pieces of their files."""
    trees: set[str] = set()
    for one in documents:
        trees |= set(_trees(store, one.key))
    reached = set(trees)
    for digest in trees:
        tree = store.tree_or_none(digest)
        if tree is not None:
            reached |= {piece for entry in tree.files for piece in entry.pieces}
    return reached


def _trees(store: Store, key: str) -> Iterator[str]:
    name = key.rpartition("/")[2]
    if name == JOB and (job := store.read(key, RemoteJob)) is not None:
        yield from (given.tree for given in job.inputs)
    if name == RESULT and (result := store.read(key, RemoteResult)) is not None and result.out:
        yield result.out
    if name == STATE and (state := store.read(key, State)) is not None:
        yield state.out


def _remove_job(home: Home, store: Store, work: str, days: float) -> int:
    """Remove the documents of a piece of work; whoever wants to work on it meanwhile waits."""
    with held(lock_of(home, work)) as free:
        documents = store.all(f"jobs/{work}") if free else []
        if not documents or min(one.age for one in documents) <= days * DAY:
            return 0
        store.remove([one.key for one in documents])
        return sum(one.size for one in documents)


def _remove_blob(store: Store, blob: Kept) -> int:
    again = store.look(blob.key)
    if again is None or again.age <= GRACE_DAYS * DAY:
        return 0
    store.remove([blob.key])
    return blob.size


__all__ = ["GRACE_DAYS", "StoreError", "old_artifacts"]
