"""The policy: how often a step with a cause is tried again, and how long it waits."""

from __future__ import annotations

import pytest

from mloc_dagster.placement.failures.cause import Cause, backoff_seconds


@pytest.mark.parametrize(
    ("cause", "none", "most"),
    [
        (Cause.USER, 0, 0),
        (Cause.TIMED_OUT, 0, 0),
        (Cause.OUT_OF_MEMORY, 0, 1),
        (Cause.WORKER_LOST, 0, 3),
        (Cause.INTERNAL, 0, 3),
    ],
)
def test_further_attempts_of_a_cause(cause: Cause, none: int, most: int) -> None:
    assert (cause.retries(0), cause.retries(3)) == (none, most)


def test_the_wait_grows_with_the_attempts_and_ends_at_two_minutes() -> None:
    assert [backoff_seconds(5, attempt) for attempt in (1, 2, 3)] == [5, 10, 15]
    assert [backoff_seconds(100, attempt) for attempt in (1, 2)] == [100, 120]
