"""Keeps two attempts at the same work from going on side by side: the store says which of them holds it.

Whoever starts an attempt cannot always end the one before, whose machine may not answer. But each attempt can read the
store, or else leaves nothing there; so one that sees that another holds its work ends by itself.
"""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict

from executors.remote.store import Store, StoreError

_LOOK_SECONDS = 10.0


class Holder(BaseModel):
    """Which attempt holds a piece of work, and on which worker; empty: it was given up, and nobody does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: str
    worker: str = ""


def hold(store: Store, identity: str, attempt: str, worker: str = "") -> None:
    """Give a piece of work to an attempt; raises StoreError."""
    store.write(_key(identity), Holder(attempt=attempt, worker=worker))


def release(store: Store, identity: str) -> None:
    """Give a piece of work up: an attempt that still works, unknown to us, ends by itself. Raises StoreError."""
    store.write(_key(identity), Holder(attempt=""))


def holder(store: Store, identity: str) -> Holder | None:
    """Return who holds a piece of work; raises StoreError."""
    return store.read(_key(identity), Holder)


class Fence:
    """Looks now and then whether an attempt, whose place in the store is `key`, still holds its work."""

    def __init__(self, store: Store, key: str, most_seconds: float) -> None:
        self._store, self._every = store, min(_LOOK_SECONDS, most_seconds)
        self._identity, _, self._attempt = key.rpartition("/")
        self._looked, self._others = time.monotonic(), 0

    def passed(self) -> bool:
        """Whether another attempt was seen to hold it at two looks in a row; a store that does not answer says no.

        Twice, since the holder is named before its start, which may find that this attempt goes on.
        """
        if time.monotonic() - self._looked >= self._every:
            self._looked = time.monotonic()
            self._others = self._others + 1 if self._is_anothers() else 0
        return self._others > 1

    def _is_anothers(self) -> bool:
        try:
            found = holder(self._store, self._identity)
            return found is not None and found.attempt != self._attempt
        except StoreError:
            return False


def _key(identity: str) -> str:
    return f"{identity}.holder.json"
