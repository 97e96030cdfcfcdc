"""Days, months and all time make up every span of days, none twice."""

from __future__ import annotations

from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from mloc_dagster.usage.periods import ALL, covering, day_number, periods_of

KNOWN = (day_number(date(2024, 1, 17)), day_number(date(2026, 3, 2)))
DAYS = st.none() | st.integers(KNOWN[0] - 40, KNOWN[1] + 40)


@given(DAYS, DAYS)
def test_each_day_is_in_exactly_one_of_the_periods(first: int | None, last: int | None) -> None:
    spans = covering(first, last, KNOWN)
    for day in range(KNOWN[0], KNOWN[1] + 1):
        found = sum(low <= period <= high for period in periods_of(day) for low, high in spans)
        assert found == ((first is None or day >= first) and (last is None or day <= last)), day
    assert sum(high - low + 1 for low, high in spans if low >= 0) <= 62 and (len(spans) < 2 or (ALL, ALL) not in spans)
