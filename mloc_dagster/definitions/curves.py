"""A curve as text that the asset page shows.

Text, because the web UI of Dagster 1.13 drops images with `data:` addresses from Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_COLUMNS, _ROWS = 64, 8
_BLOCKS = " ▁▂▃▄▅▆▇█"
_LEVELS = len(_BLOCKS) - 1


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Return Markdown with a chart of finite (step, value) points, in the order of their steps."""
    return f"```text\n{draw(name, points)}\n```"


def draw(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Return the chart: a column a step, or the mean of several steps when there are more than 64."""
    steps, values = [step for step, _ in points], _columns([value for _, value in points])
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    heights = [1 + round((value - low) / span * (_ROWS * _LEVELS - 1)) for value in values]
    labels = {_ROWS - 1: f"{high:.4g}", 0: f"{low:.4g}"}
    width = max(len(label) for label in labels.values())
    rows = [f"{labels.get(row, ''):>{width}} ┤{_row(heights, row)}" for row in reversed(range(_ROWS))]
    first, last = f"{steps[0]:g}", f"{steps[-1]:g}"
    axis = f"{'':>{width}}  {first}{last:>{max(len(values) - len(first), len(last) + 1)}}"
    return "\n".join([f"{name} by step", *(row.rstrip() for row in rows), axis])


def _columns(values: Sequence[float]) -> list[float]:
    if len(values) <= _COLUMNS:
        return list(values)
    edges = [index * len(values) // _COLUMNS for index in range(_COLUMNS + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def _row(heights: Sequence[int], row: int) -> str:
    return "".join(_BLOCKS[min(max(height - row * _LEVELS, 0), _LEVELS)] for height in heights)
