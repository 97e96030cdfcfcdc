"""Logs as JSON lines: what they say, what they are about, and what they never say."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from mloc_dagster.telemetry import logs

LOG = """
import logging, sys
from mloc_dagster.telemetry import logs
logs.configure("test")
log = logging.getLogger("mloc")
with logs.about(run_id="r1", task_id="t1"):
    log.info("begins")
    with logs.about(step="a/b"):
        log.warning("slow", extra={"run_id": "r2"})
try:
    raise ValueError("Authorization: Bearer abc.def of postgres://u:hunter2@db/x")
except ValueError:
    log.exception("failed with %s", "mloc_0123abcd_" + "x" * 43)
print("printed by a library")
print("told " + "s3cret-value-1", file=sys.stderr)
logging.getLogger("other").info("not told")
logging.getLogger("other").warning("other")
"""


def told(format: str) -> tuple[str, str]:
    """What a process writes on its two streams."""
    environment = {**os.environ, logs.SETTING: format, "SOME_API_KEY": "s3cret-value-1"}
    done = subprocess.run([sys.executable, "-c", LOG], env=environment, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_each_line_is_an_object_that_says_what_it_is_about() -> None:
    out, errors = told("json")
    assert out == ""
    lines = [json.loads(line) for line in errors.splitlines()]
    assert [line["message"].split()[0] for line in lines] == ["begins", "slow", "failed", "printed", "told", "other"]
    assert {name: lines[0][name] for name in logs.IDS[:2]} == {"task_id": "t1", "run_id": "r1"} and "step" not in lines[
        0
    ]
    assert lines[1]["run_id"] == "r2" and lines[1]["step"] == "a/b" and lines[1]["level"] == "warning"
    assert "run_id" not in lines[2] and "ValueError" in lines[2]["exception"]
    assert lines[3]["logger"] == "stdout" and lines[4]["logger"] == "stderr"
    assert {line["service"] for line in lines} == {"test"}


@pytest.mark.parametrize("format", ["text", "json"])
def test_no_secret_gets_in(format: str) -> None:
    _, errors = told(format)
    assert "failed with mloc_0123abcd_***" in errors and "x" * 20 not in errors
    if format == "json":  # as text, what is printed and tracebacks on it are not ours
        assert "s3cret-value-1" not in errors
    assert "hunter2" not in errors and "abc.def" not in errors


def test_a_record_that_is_repeated_stays_one() -> None:
    code = 'from mloc_dagster.telemetry import logs; logs.configure(\'a\'); print(\'{"time": "t", "message": "m"}\')'
    environment = {**os.environ, logs.SETTING: "json"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"time": "t", "message": "m"} and done.stderr == ""


def test_a_format_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.SETTING, "xml")
    with pytest.raises(logs.BadFormat, match="'xml'; write text or json"):
        logs.configure("test")
    assert logging.getLogger("mloc").level != logging.CRITICAL
