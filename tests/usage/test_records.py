"""What `mloc export` and `mloc report` write of a history."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dagster import DagsterEventType, DagsterRunStatus
from typer.testing import CliRunner

from mloc_dagster.cli import app
from mloc_dagster.usage.fill import refresh
from mloc_dagster.usage.records import Row, Wanted, runs, tasks, write
from mloc_dagster.usage.report import as_html, as_markdown, report
from tests.usage.conftest import NOON, Past

DAY = datetime.fromtimestamp(NOON, UTC).date()
START, SUCCESS, FAILURE = DagsterEventType.STEP_START, DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_FAILURE
NASTY = '<script>alert("x")</script>|`[a](b)'


@pytest.fixture
def rows(past: Past) -> list[Row]:
    """Three days: a GPU run that succeeded, a failure, one of an owner with a nasty name, one that never began."""
    past.run([(0, START, "t__a"), (3600, SUCCESS, "t__a")], gpus=[("a100-80gb", 1000)], waited=30,
             tokens=("t__a", 70, 30), tags={"mloc/type.sft": "true"})  # fmt: skip
    past.run([(0, START, "t__a"), (60, FAILURE, "t__a")], seconds=60, status=DagsterRunStatus.FAILURE,
             began=NOON + 86_400, tags={"mloc/type.sft": "true", "mloc/failure_cause": "out_of_memory"})  # fmt: skip
    past.run(seconds=10, began=NOON + 2 * 86_400, owner=NASTY, project="other", tags={"mloc/type.echo": "true"})
    past.run(began=None, seconds=5, status=DagsterRunStatus.CANCELED, task="=1+1")
    refresh(past.instance, past.table)
    return list(runs(past.instance, past.table, Wanted()))


def test_rows_tell_times_causes_and_usage(rows: list[Row]) -> None:
    by_status = {row.status: row for row in rows if row.owner == "ann"}
    done, failed, canceled = (by_status[name] for name in ("SUCCESS", "FAILURE", "CANCELED"))
    assert (done.gpu_hours, done.cpu_hours, done.prompt_tokens, done.completion_tokens) == (1.0, 1.0, 70, 30)
    assert (done.queue_seconds, done.run_seconds, done.task_types, done.cause) == (30.0, 3600.0, "sft", None)
    assert (failed.cause, failed.run_seconds) == ("out_of_memory", 60.0)
    assert (canceled.started, canceled.run_seconds, canceled.queue_seconds) == (None, None, 5.0)


def test_only_what_is_asked_for(past: Past, rows: list[Row]) -> None:
    def found(**asked: float | str) -> int:
        return sum(1 for _ in runs(past.instance, past.table, Wanted(**asked)))  # type: ignore[arg-type]

    assert (len(rows), found(owner="ann"), found(project="other"), found(owner="nobody")) == (4, 3, 1, 0)
    assert (found(since=NOON + 1), found(until=NOON + 1), found(since=NOON - 31, until=NOON - 29)) == (2, 2, 1)


def test_a_task_is_all_its_runs(past: Past) -> None:
    first = past.run([(0, START, "t__a")], seconds=60, status=DagsterRunStatus.FAILURE, gpus=[("h200", 1000)])
    refresh(past.instance, past.table)
    (one,) = runs(past.instance, past.table, Wanted())
    again = Row(**{**vars(one), "run_id": "later", "status": "SUCCESS", "cause": None, "created": NOON + 100,
                   "started": NOON + 110, "queue_seconds": 10.0, "run_seconds": 40.0})  # fmt: skip
    (task,) = tasks([again, one])
    assert (task.task_id, task.run_id, task.status, task.cause, task.runs) == (first, "later", "SUCCESS", None, 2)
    assert (task.created, task.started, task.run_seconds) == (NOON, NOON, 100.0)
    assert task.gpu_hours == pytest.approx(2 * 60 / 3600)


def test_all_forms_hold_the_same(rows: list[Row], tmp_path: Path) -> None:
    for form in ("csv", "json", "parquet"):
        assert write(iter(rows), form, tmp_path / f"x.{form}") == 4
    told = json.loads((tmp_path / "x.json").read_text())
    assert told == [vars(row) for row in rows]
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == told
    with (tmp_path / "x.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["run_id"] for row in read] == [row.run_id for row in rows]
    assert {row["task"] for row in read} == {"t", "'=1+1"}, "a spreadsheet would compute it"
    assert {row["owner"] for row in read} == {"ann", NASTY}
    for form in ("csv", "json", "parquet"):
        assert write([], form, tmp_path / f"none.{form}") == 0
    assert json.loads((tmp_path / "none.json").read_text()) == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(
        f"{name}.{form}" for name in ("none", "x") for form in ("csv", "json", "parquet")
    )


def test_what_breaks_off_leaves_the_file_that_was_there(rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("before")

    def broken():
        yield rows[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write(broken(), "csv", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "before"


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [name for name, _ in attrs if name in ("src", "href", "action", "data") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_holds_its_plots_loads_nothing_and_escapes_all(rows: list[Row]) -> None:
    written = as_html(report(rows, DAY, date.fromordinal(DAY.toordinal() + 2), f"About {NASTY}"))
    page = Page()
    page.feed(written)
    assert page.tags.count("svg") == 7 and not page.loads
    assert "script" not in page.tags and NASTY in page.text
    assert "default-src 'none'" in written and "url(" not in written
    text = " ".join(page.text)
    for part in ("66.7 %", "out_of_memory", "sft", "echo", "up to 1 min", "100"):
        assert part in text, part
    figures = re.findall(r"<tr><td>sft</td>(.*?)</tr>", written)[0]
    assert re.findall(r"<td>(.*?)</td>", figures) == ["2", "1", "1", "50.0 %", "3600 s", "3600 s", "1"]


def test_the_same_as_markdown(rows: list[Row]) -> None:
    written = as_markdown(report(rows, DAY, date.fromordinal(DAY.toordinal() + 2), NASTY))
    assert written.startswith("# &lt;script&gt;alert\\(") and "<script" not in written
    assert written.count("```") == 14 and "█" in written
    assert "| sft | 2 | 1 | 1 | 50.0 % | 3600 s | 3600 s | 1 |" in written
    assert re.search(r"^out_of_memory █+ 1 runs$", written, re.MULTILINE)


def test_a_report_of_nothing(past: Past) -> None:
    for form in (as_html, as_markdown):
        assert "success rate" in form(report([], DAY, DAY, "empty"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export", "x.txt"], "name it .csv, .json or .parquet"),
        (["export", "x.csv", "--what", "steps"], "there are tasks and runs"),
        (["export", "no/such/x.csv"], "cannot be written: No such file"),
        (["report", "x.pdf"], "name it .html or .md"),
        (["report", "x.md", "--since", "2026-01-02", "--until", "2026-01-01"], "write the later day as --until"),
    ],
)
def test_what_cannot_be_written_is_told(past: Past, arguments: list[str], told: str) -> None:
    answer = CliRunner().invoke(app, ["--home", str(past.home.root), *arguments])
    assert answer.exit_code == 2 and told in answer.stderr


def test_the_commands(past: Past, rows: list[Row], tmp_path: Path) -> None:
    def command(*arguments: str) -> str:
        answer = CliRunner().invoke(app, ["--home", str(past.home.root), *arguments])
        assert answer.exit_code == 0, answer.stderr
        return " ".join(answer.stderr.split())

    assert command("export", str(tmp_path / "x.parquet"), "--user", "ann").startswith("3 tasks in")
    day = str(DAY)
    assert command("report", str(tmp_path / "x.html"), "--since", day, "--until", day).startswith("2 runs in")
    assert "<svg" in (tmp_path / "x.html").read_text()
    command("report", str(tmp_path / "x.md"))
    assert "days of UTC" in (tmp_path / "x.md").read_text()
