"""Entry points of installed packages, read once for each folder of packages, and again when that folder changes.

`importlib.metadata` reads all of them at each question, which takes longer than a light stage does.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions


def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
    """Return the entry points of a group, of one name when it is given.

    Of a package that lies in several folders of `sys.path` only the first counts, as for an import.
    """
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for folder in sys.path:
        for package, points in _packages(folder or os.curdir, _changed(folder or os.curdir)):
            found.setdefault(package, points)
    points = [point for points in found.values() for point in points]
    return [point for point in points if point.group == group and name in (None, point.name)]


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _packages(folder: str, changed: int) -> list[tuple[str, tuple[EntryPoint, ...]]]:
    """The packages of a folder that offer something; `changed` is when it was last changed (ns)."""
    # The name by the folder's own name: to read it from the package's metadata would take as long as all the rest.
    found = [
        (package._normalized_name, tuple(package.entry_points))  # pyright: ignore[reportAttributeAccessIssue]
        for package in distributions(path=[folder])
    ]
    return [(name, points) for name, points in found if points]
