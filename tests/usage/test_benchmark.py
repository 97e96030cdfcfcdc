"""The benchmark of stats on a small history: its answers agree with a recount that shares no code with them."""

from __future__ import annotations

from benchmarks.stats import measure
from tests.usage.conftest import Past


def test_stats_agree_with_a_recount_of_the_storage(past: Past) -> None:
    found = measure(1500)
    assert len(found) == 5 and all(one.agrees for one in found), found
    assert all(one.median_ms < 100 for one in found), found
