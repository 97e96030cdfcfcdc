"""Plots without a library: bars as inline SVG for a page, and as text for Markdown. Every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#3b7dd8", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#6c757d")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 200, 56, 34, 12
_BLOCKS = "▏▎▍▌▋▊▉█"
_TEXT_WIDTH = 30
_LONGEST = 40


def columns(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]], unit: str = "") -> str:
    """Return an SVG of stacked columns, one for each label, with what each holds as its tooltip."""
    heights = [sum(values[at] for values in series.values()) for at in range(len(labels))]
    most = max(heights, default=0.0) or 1.0
    step = (_WIDTH - _LEFT) / max(1, len(labels))
    parts = [_axis(most, unit)]
    for at, label in enumerate(labels):
        top, left = float(_HEIGHT - _BOTTOM), _LEFT + at * step
        for colour, (name, values) in zip(COLOURS, series.items(), strict=False):
            height = values[at] / most * (_HEIGHT - _BOTTOM - _TOP)
            top -= height
            told = escape(f"{label}: {name} {number(values[at])} {unit}".strip())
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(1.0, step * 0.8):.1f}" height="{height:.1f}" '
                f'fill="{colour}"><title>{told}</title></rect>'
            )
        if at % max(1, len(labels) // 8) == 0:
            parts.append(f'<text x="{left:.1f}" y="{_HEIGHT - _BOTTOM + 15}">{escape(label[:_LONGEST])}</text>')
    return _svg(title, parts, _HEIGHT) + _legend(list(series))


def rows(title: str, values: Mapping[str, float], unit: str = "") -> str:
    """Return an SVG of bars beside their labels, in the order given."""
    most, parts, left = max(values.values(), default=0.0) or 1.0, [], 200
    for at, (label, value) in enumerate(values.items()):
        y, width = 8 + at * 24, max(1.0, value / most * (_WIDTH - left - 120))
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(label[:_LONGEST])}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="18" fill="{COLOURS[0]}"/>')
        told = escape(f"{number(value)} {unit}".strip())
        parts.append(f'<text x="{left + width + 6:.1f}" y="{y + 13}">{told}</text>')
    return _svg(title, parts, 16 + 24 * max(1, len(values)))


def text_rows(values: Mapping[str, float], unit: str = "") -> list[str]:
    """Return lines of text with a bar each, for a code block of Markdown."""
    most = max(values.values(), default=0.0) or 1.0
    wide = max((len(label[:_LONGEST]) for label in values), default=0)
    return [
        f"{_plain(label)[:_LONGEST]:<{wide}} {_bar(value / most):<{_TEXT_WIDTH}} {number(value)} {unit}".rstrip()
        for label, value in values.items()
    ]


def number(value: float) -> str:
    """Return a number as a person reads it."""
    return f"{value:.0f}" if value == int(value) and value < 1e15 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _plain(text: str) -> str:
    """A text that ends no code block and no line."""
    return " ".join(text.replace("`", "'").split())


def _bar(part: float) -> str:
    eighths = round(part * _TEXT_WIDTH * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_BLOCKS[rest - 1] if rest else "")


def _axis(most: float, unit: str) -> str:
    lines = []
    for part in (0.0, 0.5, 1.0):
        y = _HEIGHT - _BOTTOM - part * (_HEIGHT - _BOTTOM - _TOP)
        lines.append(f'<line x1="{_LEFT - 4}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        told = escape(f"{number(part * most)} {unit if part == 1 else ''}".strip())
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{told}</text>')
    return "".join(lines)


def _svg(title: str, parts: Sequence[str], height: int) -> str:
    named = escape(title, quote=True)
    return (
        f'<svg role="img" aria-label="{named}" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'font-family="sans-serif" font-size="11" fill="#333">{"".join(parts)}</svg>'
    )


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    marks = (
        f'<span style="color:{colour}">■</span> {escape(name)}' for colour, name in zip(COLOURS, names, strict=False)
    )
    return f'<p class="legend">{" &nbsp; ".join(marks)}</p>'
