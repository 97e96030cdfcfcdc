"""Several containers of one attempt that train as one: the log is that of the first, the end that of all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from mloc_dagster.placement.remote.carrier import Carried, Ending, Sign

_LOOK_SECONDS = 2.0
_AFTER_FAILURE_SECONDS = 15.0
"""So long the others have to fail by themselves, and to tell why, when one has failed."""


class Group:
    """The containers of an attempt, in the order of their ranks; fewer than `count` were never started together."""

    def __init__(self, members: Sequence[Carried], count: int) -> None:
        first = members[0]
        self.attempt, self.worker = first.attempt, first.worker
        self.devices = tuple(device for member in members for device in member.devices)
        self.place = f"{first.place} and {count - 1} more"
        self._members, self._count = members, count
        self._fallen: tuple[int, Ending] | None = None
        self._fallen_at = self._looked = 0.0

    def stream(self) -> Iterator[bytes | Sign]:
        """Yield the log of the first; looks after the others meanwhile."""
        for block in self._members[0].stream():
            yield block
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self.ending()

    def ending(self) -> Ending | None:
        """How all of them ended; None until the first one has. One that fails has the others ended."""
        if len(self._members) < self._count:
            return Ending(None, words=f"{len(self._members)} of its {self._count} containers were made")
        self._looked = time.monotonic()
        endings = [member.ending() for member in self._members]
        self._note(endings)
        if self._fallen is None:
            return Ending(0) if None not in endings else None
        if None in endings and (endings[0] is not None or time.monotonic() - self._fallen_at > _AFTER_FAILURE_SECONDS):
            self.kill()
        if endings[0] is None:
            return None
        rank, ending = self._fallen
        return ending if rank == 0 or not ending.words else replace(ending, words=f"(replica {rank}) {ending.words}")

    def stop(self) -> None:
        """Ask all of them to end, then end them, within their grace."""
        with ThreadPoolExecutor(len(self._members)) as pool:  # at one time: they agree on the step at which they end
            for done in [pool.submit(member.stop) for member in self._members]:
                done.result()

    def kill(self) -> None:
        """End all of them at once."""
        for member in self._members:
            member.kill()

    def remove(self, *, failed: bool) -> None:
        """Clear them away."""
        for member in reversed(self._members):
            member.remove(failed=failed)

    def _note(self, endings: Sequence[Ending | None]) -> None:
        """Remember what failed first; of several at once, what was killed, since the others then fail for that."""
        failed = [(rank, one) for rank, one in enumerate(endings) if one is not None and one.code != 0]
        if self._fallen is None and failed:
            self._fallen = min(failed, key=lambda one: not (one[1].out_of_memory or one[1].code in (None, 137)))
            self._fallen_at = time.monotonic()
