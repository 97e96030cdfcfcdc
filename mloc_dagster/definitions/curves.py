"""A curve as a small picture that the asset page shows."""

from __future__ import annotations

import base64
from collections.abc import Sequence

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 480, 180, 56, 24, 18


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Return Markdown with a picture of (step, value) points as an SVG data URI."""
    svg = draw(name, points)
    return f"![{name}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def draw(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Return the SVG text of a line through (step, value) points."""
    steps, values = [p[0] for p in points], [p[1] for p in points]
    x, y = _scale(steps, _LEFT, _WIDTH - 8), _scale(values, _HEIGHT - _BOTTOM, _TOP)
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    label = 'font-family="sans-serif" font-size="11" fill="#555"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<path d="M{_LEFT},{_TOP} V{_HEIGHT - _BOTTOM} H{_WIDTH - 8}" fill="none" stroke="#bbb"/>'
        f'<polyline points="{path}" fill="none" stroke="#4f43dd" stroke-width="2"/>'
        f'<text x="{_LEFT}" y="12" {label}>{name}</text>'
        f'<text x="4" y="{_TOP + 8}" {label}>{max(values):.4g}</text>'
        f'<text x="4" y="{_HEIGHT - _BOTTOM}" {label}>{min(values):.4g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}" {label}>{steps[0]:g}</text>'
        f'<text x="{_WIDTH - 50}" y="{_HEIGHT - 8}" {label}>{steps[-1]:g}</text></svg>'
    )


def _scale(values: Sequence[float], start: float, end: float):  # noqa: ANN202
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)
