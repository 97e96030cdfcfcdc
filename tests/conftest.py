"""The order of the tests: files with the most slow tests first, so that two workers end at about the same time."""

from __future__ import annotations

import os
from collections import Counter

import pytest

os.environ.setdefault("MLOC_ENGINE_IDLE", "0")  # no test leaves an engine behind, except those that are about engines

os.environ.setdefault("MLOC_POOL_IDLE", "3")  # pools of homes that tests leave behind end soon


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file; within a file the order stays."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
