"""A report on what ran in a span of days: one page of HTML that needs nothing else, or Markdown."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from html import escape
from statistics import quantiles

from mloc_dagster.usage import plots
from mloc_dagster.usage.records import Row

_ENDS = {"SUCCESS": "succeeded", "FAILURE": "failed", "CANCELED": "cancelled"}
_WAITS = ((10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h"), (21600, "6 h"), (float("inf"), "longer"))
_MOST_ROWS = 15
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|<>~])")
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:780px;margin:2em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:right;padding:.25em .6em;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}.legend{font-size:.85em;margin:.2em}svg{max-width:100%;height:auto}"
)


@dataclass
class _Group:
    """Runs of one day, one task type, one owner."""

    ended: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    gpu_hours: float = 0.0

    def add(self, row: Row) -> None:
        self.ended[_ENDS.get(row.status, "going on")] += 1
        self.gpu_hours += row.gpu_hours
        if row.run_seconds is not None and row.status == "SUCCESS":
            self.seconds.append(row.run_seconds)
        if row.queue_seconds is not None:
            self.waits.append(row.queue_seconds)

    @property
    def success_rate(self) -> float | None:
        over = self.ended["succeeded"] + self.ended["failed"]
        return self.ended["succeeded"] / over if over else None


@dataclass(frozen=True)
class Report:
    """What the page tells, before it is written."""

    first: date
    last: date
    title: str
    whole: _Group
    days: dict[str, _Group]
    types: dict[str, _Group]
    owners: dict[str, _Group]
    causes: Counter[str]
    slo: Counter[bool]
    tokens: int


def report(rows: Iterable[Row], first: date, last: date, title: str) -> Report:
    """Sum up runs that were created from one day to another (UTC, both included)."""
    days = {str(first + timedelta(days=at)): _Group() for at in range((last - first).days + 1)}
    found = Report(first, last, title, _Group(), days, {}, {}, Counter(), Counter(), 0)
    tokens = 0
    types: dict[str, _Group] = defaultdict(_Group)
    owners: dict[str, _Group] = defaultdict(_Group)
    for row in rows:
        day = days.get(str(datetime.fromtimestamp(row.created, UTC).date()))
        if day is None:
            continue
        for group in (found.whole, day, owners[row.owner], *(types[name] for name in row.task_types.split() or ["-"])):
            group.add(row)
        if row.cause:
            found.causes[row.cause] += 1
        if row.slo_met is not None:
            found.slo[row.slo_met] += 1
        tokens += row.prompt_tokens + row.completion_tokens
    return Report(
        first, last, title, found.whole, days, dict(sorted(types.items())), dict(sorted(owners.items())), found.causes,
        found.slo, tokens,
    )  # fmt: skip


def as_html(told: Report) -> str:
    """Return one page; it loads nothing, and runs no script."""
    labels = list(told.days)
    parts = [f"<h1>{escape(told.title)}</h1>", f"<p>{escape(_span(told))}</p>", _html_table(("", ""), _facts(told))]

    def columns(title: str, unit: str, **series: Callable[[_Group], float]) -> None:
        values = {name.replace("_", " "): [of(day) for day in told.days.values()] for name, of in series.items()}
        parts.extend([f"<h2>{escape(title)}</h2>", plots.columns(title, labels, values, unit)])

    columns(
        "Runs by the day they were created", "", succeeded=lambda day: day.ended["succeeded"],
        failed=lambda day: day.ended["failed"], cancelled=lambda day: day.ended["cancelled"],
        going_on=lambda day: day.ended["going on"],
    )  # fmt: skip
    columns("Success rate", "%", success_rate=lambda day: 100 * (day.success_rate or 0.0))
    columns("Duration of runs that succeeded, median", "s", median=lambda day: _quantile(day.seconds, 50))
    columns("Wait in the queue, 95th percentile", "s", wait=lambda day: _quantile(day.waits, 95))
    parts += ["<h2>How long runs waited</h2>", plots.rows("waits", _waits(told), "runs")]
    columns("GPU-hours", "h", gpu_hours=lambda day: day.gpu_hours)
    parts += ["<h2>Failures by cause</h2>", plots.rows("causes", dict(told.causes.most_common()), "runs") or ""]
    parts += ["<h2>By executor</h2>", _html_table(_HEAD, _groups(told.types))]
    parts += ["<h2>By owner</h2>", _html_table(("owner", *_HEAD[1:]), _groups(told.owners))]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(told.title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def as_markdown(told: Report) -> str:
    """Return the same as Markdown, with bars of text."""
    lines = [f"# {_md(told.title)}", "", _md(_span(told)), "", *_md_table(("", ""), _facts(told))]

    def bars(title: str, unit: str, of: Callable[[_Group], float]) -> None:
        lines.extend(["", f"## {title}", "", "```text"])
        lines.extend(plots.text_rows({label: of(day) for label, day in told.days.items()}, unit))
        lines.append("```")

    bars("Runs by the day they were created", "", lambda day: day.ended.total())
    bars("Success rate", "%", lambda day: 100 * (day.success_rate or 0.0))
    bars("Duration of runs that succeeded, median", "s", lambda day: _quantile(day.seconds, 50))
    bars("Wait in the queue, 95th percentile", "s", lambda day: _quantile(day.waits, 95))
    bars("GPU-hours", "h", lambda day: day.gpu_hours)
    lines += ["", "## How long runs waited", "", "```text", *plots.text_rows(_waits(told), "runs"), "```"]
    lines += ["", "## Failures by cause", "", "```text"]
    lines += [*(plots.text_rows(dict(told.causes.most_common()), "runs") or ["none"]), "```"]
    lines += ["", "## By executor", "", *_md_table(_HEAD, _groups(told.types))]
    lines += ["", "## By owner", "", *_md_table(("owner", *_HEAD[1:]), _groups(told.owners))]
    return "\n".join(lines) + "\n"


_HEAD = ("executor", "runs", "succeeded", "failed", "success rate", "median", "95th percentile", "GPU-hours")


def _span(told: Report) -> str:
    return f"{told.first} to {told.last}, days of UTC"


def _facts(told: Report) -> Iterator[tuple[str, ...]]:
    whole = told.whole
    yield "runs", str(whole.ended.total())
    yield "success rate", _rate(whole)
    yield "duration, median and 95th percentile", f"{_seconds(whole.seconds, 50)}, {_seconds(whole.seconds, 95)}"
    yield "wait, median and 95th percentile", f"{_seconds(whole.waits, 50)}, {_seconds(whole.waits, 95)}"
    yield "GPU-hours", plots.number(whole.gpu_hours)
    yield "tokens", str(told.tokens)
    if told.slo:
        yield "service level met", f"{told.slo[True]} of {told.slo.total()}"


def _groups(groups: dict[str, _Group]) -> Iterator[tuple[str, ...]]:
    most = sorted(groups.items(), key=lambda one: -one[1].ended.total())
    for name, group in most[:_MOST_ROWS]:
        ended = (str(group.ended.total()), str(group.ended["succeeded"]), str(group.ended["failed"]))
        spans = (_seconds(group.seconds, 50), _seconds(group.seconds, 95))
        yield name, *ended, _rate(group), *spans, plots.number(group.gpu_hours)
    if len(most) > _MOST_ROWS:
        yield f"and {len(most) - _MOST_ROWS} more", *[""] * 7


def _rate(group: _Group) -> str:
    return "-" if group.success_rate is None else f"{100 * group.success_rate:.1f} %"


def _waits(told: Report) -> dict[str, float]:
    found, before = {}, 0.0
    for bound, name in _WAITS:
        told_as = name if name == "longer" else f"up to {name}"
        found[told_as] = float(sum(before <= wait < bound for wait in told.whole.waits))
        before = bound
    return found


def _quantile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else 0.0
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _seconds(values: Sequence[float], percent: int) -> str:
    return f"{plots.number(_quantile(values, percent))} s" if values else "-"


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{body}</table>"


def _md_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return [*lines, *(f"| {' | '.join(map(_md, row))} |" for row in rows)]


def _md(text: str) -> str:
    """A text of one line that means nothing to Markdown, nor to HTML in it."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")
