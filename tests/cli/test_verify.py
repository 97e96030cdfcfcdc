"""`mloc verify` and `mloc schedule` against the whole deployment that `mloc up` starts."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.cli.conftest import Mloc
from tests.cli.test_service import answers
from tests.delivery.test_http import unused_port
from tests.waiting import wait_for

WATCH = """\
apiVersion: mloc/v1
metadata: {name: watch, owner: ann}
spec:
  taskType: echo
  echo: {text: hello}
  schedule: {cron: 30 2 * * *, timezone: Europe/Berlin}
  triggers: {inbox: incoming, every_seconds: 1}
"""


@pytest.mark.slow
def test_a_deployment_is_verified_and_runs_what_was_added(mloc: Mloc) -> None:
    port = unused_port()
    process = mloc.start("up", "--port", str(port))
    try:
        wait_for(lambda: process.poll() is not None or answers(port), "the web UI", 150)
        (mloc.folder / "watch.yaml").write_text(WATCH)
        (mloc.folder / "incoming").mkdir()
        (mloc.folder / "incoming" / "a.csv").write_text("1")
        told = mloc("schedule", "add", "watch.yaml")
        assert told.code == 0 and "watch was added; it runs next at" in told.out and "warning" not in told.errors
        url = f"http://127.0.0.1:{port}"
        checked = mloc("verify", "--url", url, "--json")
        assert checked.code == 0, checked.out
        assert [check["wrong"] for check in json.loads(checked.out)] == [""] * 10
        wrong = mloc("verify", "--url", url, "--token", "nonsense")
        assert (wrong.code == 1 and "401" in wrong.out) or "token" in wrong.out
        assert "ok     a request without a token is refused" in wrong.out
        wait_for(lambda: any(row["task"] == "watch" for row in rows(mloc)), "the run of the file", 120)
        parts = {part["kind"]: part for part in json.loads(mloc.here("schedule", "list", "--json").out)[0]["parts"]}
        assert parts["schedule"]["next"] and parts["triggers"]["state"] == "RUNNING"
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        process.kill()


def rows(mloc: Mloc) -> list[dict[str, str]]:
    return json.loads(mloc.here("list", "--json").out)


def test_what_runs_by_itself_is_listed_paused_and_removed(mloc: Mloc) -> None:
    (mloc.folder / "watch.yaml").write_text(WATCH)
    file = str(mloc.folder / "watch.yaml")
    assert "nothing runs by itself" in mloc.here("schedule", "list").out
    plain = mloc.folder / "plain.yaml"
    plain.write_text("taskType: echo\necho: {text: x}\n")
    refused = mloc.here("schedule", "add", str(plain))
    assert refused.code == 2 and "has neither schedule nor triggers" in refused.errors
    assert mloc.here("schedule", "add", file).code == 0
    shown = mloc.here("schedule", "list").out
    assert "30 2 * * * (Europe/Berlin)" in shown and str(mloc.folder / "incoming") in shown
    assert mloc.here("schedule", "pause", "watch").out == "watch is paused\n"
    assert "was replaced" in mloc.here("schedule", "add", file).out
    states = [part["state"] for part in json.loads(mloc.here("schedule", "list", "--json").out)[0]["parts"]]
    assert states == ["STOPPED", "STOPPED"], "it was paused, and stays so"
    assert mloc.here("schedule", "resume", "watch").out == "watch is on\n"
    assert "did you mean watch?" in mloc.here("schedule", "pause", "wach").errors
    assert mloc.here("schedule", "remove", "watch").code == 0
    assert mloc.here("schedule", "remove", "watch").code == 2
    assert "nothing runs by itself" in mloc.here("schedule", "list").out
    validated = mloc.here("validate", file)
    assert validated.code == 0 and "takes effect once the file is added" in validated.errors + validated.out
