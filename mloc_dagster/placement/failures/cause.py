"""Why a step failed, and how often that is tried again."""

from __future__ import annotations

from enum import StrEnum

CAUSE = "mloc/failure_cause"
"""Run tag and metadata of a failed step: one of `Cause`."""
ATTEMPTS = "mloc/attempts"
"""Run tag: attempts at the step that failed, within this run; none when the run itself was lost."""
LONGEST_BACKOFF_SECONDS = 120.0


class Cause(StrEnum):
    """The policy is that of cluster schedulers: what the system did is made good, what the user wrote is told."""

    USER = "user"
    """A fault of the file, the data or an executor's input: another attempt would fail alike."""
    OUT_OF_MEMORY = "out_of_memory"
    """Memory of the machine, of a limit or of a GPU; it may have been a neighbour's, so it gets a second attempt."""
    WORKER_LOST = "worker_lost"
    """The process that did the work was killed from outside, fell silent, or its machine went down."""
    TIMED_OUT = "timed_out"
    """Longer than `timeoutSeconds`. Not tried again by itself: the user set the bound, and a second attempt would need
    as long; `mloc replay` goes on from what is stored."""
    DELIVERY = "delivery"
    """The result is there and could not be delivered; deliveries make their own further tries. `mloc replay` delivers
    it, and does no work again."""
    INTERNAL = "internal"
    """Anything else: a crash, a network that does not answer, a fault in a library."""

    def retries(self, asked: int) -> int:
        """Return how many further attempts there are when `retry.max_retries` asks for so many."""
        if self in (Cause.USER, Cause.TIMED_OUT, Cause.DELIVERY):
            return 0
        return min(asked, 1) if self is Cause.OUT_OF_MEMORY else asked


def backoff_seconds(backoff: float, attempt: int) -> float:
    """Return how long to wait after a failed attempt (the first is 1), in seconds: linear, 120 at most."""
    return min(LONGEST_BACKOFF_SECONDS, backoff * attempt)
