"""Quantities as people write them: CPU cores and memory."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*$")
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_MOST_MEMORY = 1 << 60
_MOST_CORES = 1 << 20
_CPU_WAY_OUT = 'write cores as 8, "8", 0.5 or 500m'
_MEMORY_WAY_OUT = "write 64Gi, 32GiB, 1.5Gi, 512Mi or a number of bytes"


def parse_cpu(value: object) -> float:
    """Return CPU cores for `8`, `"8"`, `0.5` or `500m`; raises ValueError otherwise."""
    number, unit = _split(value, _CPU_WAY_OUT)
    cores = {"": number, "m": number / 1000}.get(unit)
    if cores is not None and cores <= _MOST_CORES:
        return cores
    raise ValueError(f"{value!r:.60} is not a number of CPU cores; {_CPU_WAY_OUT}")


def parse_memory(value: object) -> int:
    """Return bytes for `64Gi`, `32GiB`, `1.5Gi`, `512MB` (all 1024-based) or a plain number of bytes.

    Raises ValueError when the text is no quantity.
    """
    number, unit = _split(value, _MEMORY_WAY_OUT)
    bare = unit.lower().removesuffix("b").removesuffix("i")
    if bare not in _POWER or (unit == "m"):
        raise ValueError(f"{value!r:.60} is not an amount of memory; {_MEMORY_WAY_OUT}")
    size = number * 1024.0 ** _POWER[bare]
    if size >= _MOST_MEMORY:
        raise ValueError(f"{value!r:.60} is more memory than any machine has; {_MEMORY_WAY_OUT}")
    return int(size)


def format_bytes(count: float) -> str:
    """Return a short 1024-based text such as `1.5 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def _split(value: object, way_out: str) -> tuple[float, str]:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r:.60} is not a quantity; {way_out}")
    if isinstance(value, int) and abs(value) > _MOST_MEMORY:
        raise ValueError(f"{value!r:.60} is not a quantity; {way_out}")
    if isinstance(value, (int, float)):
        number, unit = float(value), ""
    else:
        match = _NUMBER.match(value)
        if not match:
            raise ValueError(f"{value!r:.60} is not a quantity; {way_out}")
        number, unit = float(match[1]), match[2]
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r:.60} is not a quantity; {way_out}")
    return number, unit
