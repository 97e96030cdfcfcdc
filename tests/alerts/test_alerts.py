"""What is told, to whom, and when: with a webhook and a mail server on the loopback interface."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_string
from email.header import decode_header, make_header
from pathlib import Path

import pytest
import yaml
from dagster import DagsterRun, DagsterRunStatus, build_sensor_context

from mloc_dagster.alerts.channels import Notice, NotTold, tell
from mloc_dagster.alerts.rules import holding
from mloc_dagster.alerts.settings import AlertSettings, Channel, Rules, settings_of
from mloc_dagster.definitions.alerts import after, alerts_sensor
from mloc_dagster.definitions.submit import job_origin
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.workers.detect import this_machine
from mloc_dagster.spec import SpecError
from mloc_dagster.usage.fill import refresh
from tests.delivery.receiver import Receiver, running_receiver
from tests.delivery.test_once import verifier
from tests.usage.conftest import Past, past

__all__ = ["past"]
NOTICES = [
    Notice("failure_rate", "firing", "5 of 6 runs failed <!channel> & more\nin all", 1.0),
    Notice("slo", "resolved", "no more: 2 runs missed", 2.0),
]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook."""
    with running_receiver() as running:
        yield running


@dataclass
class Sink:
    """A mail server that keeps what comes."""

    port: int
    mails: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    refuses: bool = False


@contextmanager
def mail_sink() -> Iterator[Sink]:
    """Serve SMTP until the block ends: as much of it as a client needs that neither logs in nor encrypts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sink, over = Sink(server.getsockname()[1]), threading.Event()
        server.settimeout(0.05)

        def serve() -> None:
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                connection.settimeout(10)
                with connection, connection.makefile("rwb") as file:
                    _converse(file, sink)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield sink
        finally:
            over.set()
            thread.join()


def _converse(file, sink: Sink) -> None:
    def say(text: str) -> None:
        file.write(f"{text}\r\n".encode())
        file.flush()

    say("220 sink")
    while line := file.readline().decode().strip():
        sink.said.append(line)
        verb = line.split()[0].upper()
        if verb == "DATA":
            say("354 go on")
            lines = []
            while (data := file.readline().decode().rstrip("\r\n")) != ".":
                lines.append(data)
            sink.mails.append("\n".join(lines))
            say("250 kept")
        elif verb == "QUIT":
            say("221 bye")
            return
        else:
            say("550 no such box" if verb == "RCPT" and sink.refuses else "250 ok")


def channel(**values: object) -> Channel:
    return Channel.model_validate(values)


def test_slack_gets_text_in_which_nothing_is_a_mention(receiver: Receiver) -> None:
    tell(channel(type="slack", url=f"{receiver.address}/services/T0/B0/x"), NOTICES)
    (taken,) = receiver.taken
    assert taken.path == "/services/T0/B0/x" and taken.headers["Content-Type"] == "application/json"
    text = json.loads(taken.head)["text"]
    assert "5 of 6 runs failed &lt;!channel&gt; &amp; more" in text and "large_green_circle: MLOC: no more" in text


def test_a_webhook_gets_json_signed_as_deliveries_are(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "hunter2hunter2")
    monkeypatch.setenv("HOOK_TOKEN", "t0ken")
    headers = {"Authorization": "Bearer ${HOOK_TOKEN}"}
    secret = "${HOOK_SECRET}"
    tell(channel(type="webhook", url=receiver.address, headers=headers, signing_secret=secret), NOTICES)
    (taken,) = receiver.taken
    assert [alert["key"] for alert in json.loads(taken.head)["alerts"]] == ["failure_rate", "slo"]
    assert json.loads(taken.head)["alerts"][1] == vars(NOTICES[1])
    assert taken.headers["Authorization"] == "Bearer t0ken"
    assert verifier()("hunter2hunter2", taken.headers, taken.head)


def test_a_mail_says_it_in_its_subject() -> None:
    with mail_sink() as sink:
        mail = channel(type="email", host="127.0.0.1", port=sink.port, tls="none", sender="mloc@x.example",
                       to=["ann@x.example", "bob@x.example"])  # fmt: skip
        tell(mail, NOTICES)
        (text,) = sink.mails
        message = message_from_string(text)
        subject = str(make_header(decode_header(message["Subject"])))
        assert subject == "MLOC: 5 of 6 runs failed <!channel> & more in all"
        assert message["To"] == "ann@x.example, bob@x.example"
        assert "resolved: no more: 2 runs missed" in message.get_payload()
        assert [line for line in sink.said if line.lower().startswith("rcpt")] == [
            "rcpt TO:<ann@x.example>", "rcpt TO:<bob@x.example>"
        ]  # fmt: skip
        sink.refuses = True
        with pytest.raises(NotTold, match="no such box"):
            tell(mail, NOTICES)


def test_what_cannot_be_told_tells_no_secret(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_PATH", "T0B0s3cr3t")
    receiver.statuses = [500, 302]
    for _ in range(2):
        with pytest.raises(NotTold, match=r"slack: ValueError: was answered (500|302)"):
            tell(channel(type="slack", url=f"{receiver.address}/${{SLACK_PATH}}"), NOTICES)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(NotTold) as error:
        tell(channel(type="slack", url=f"http://127.0.0.1:{port}/T0B0plain"), NOTICES)
    assert "T0B0" not in str(error.value) and "ConnectionError" in str(error.value)
    with pytest.raises(NotTold, match="NOT_SET_HERE"):
        tell(channel(type="slack", url="${NOT_SET_HERE}"), NOTICES)


def test_each_channel_is_told_once_again_after_a_while_and_when_it_is_over(receiver: Receiver) -> None:
    told = {"channels": [{"type": "webhook", "url": f"{receiver.address}/{name}"} for name in "ab"]}
    settings = AlertSettings.model_validate({**told, "repeat_minutes": 60})
    receiver.statuses = [200, 503]
    known, lines = after({}, {"slo": "1 run"}, settings)
    assert lines == ["told webhook of 1", "could not tell webhook: ValueError: was answered 503 Service Unavailable"]
    known, lines = after(known, {"slo": "2 runs"}, settings)
    assert lines == ["told webhook of 1"] and [one.path for one in receiver.taken] == ["/a", "/b", "/b"]
    known = json.loads(json.dumps(known))  # as the cursor keeps it
    assert after(known, {"slo": "2 runs"}, settings)[1] == []
    later = {name: {key: (at - 3601, text) for key, (at, text) in held.items()} for name, held in known.items()}
    assert after(later, {"slo": "2 runs"}, settings)[1] == ["told webhook of 1"] * 2
    known, lines = after(known, {}, settings)
    assert lines == ["told webhook of 1"] * 2 and known == {"0 webhook": {}, "1 webhook": {}}
    (over,) = json.loads(receiver.taken[-1].head)["alerts"]
    assert (over["state"], over["text"]) == ("resolved", "no more: 2 runs")


def rules(**values: object) -> Rules:
    return Rules.model_validate(values)


def test_failures_backlog_and_service_levels(past: Past) -> None:
    now = time.time()
    for number in range(4):
        failed = number < 3
        ended = DagsterRunStatus.FAILURE if failed else DagsterRunStatus.SUCCESS
        past.run(began=now - 100, seconds=50, status=ended, tags={} if failed else {"mloc/slo_seconds": "10"})
    past.run(began=now - 100, status=DagsterRunStatus.STARTED, tags={"mloc/slo_seconds": "20"})
    past.run(began=now - 100, status=DagsterRunStatus.STARTED, tags={"mloc/slo_seconds": "2000"})
    refresh(past.instance, past.table)

    def found(**values: object) -> dict[str, str]:
        return holding(past.instance, past.table, rules(**values))

    rate = {"above": 0.5, "least_runs": 4}
    assert found(failure_rate=rate) == {"failure_rate": "3 of 4 runs failed in the last 60 min (75 %), more than 50 %"}
    assert found(failure_rate={"above": 0.75, "least_runs": 4}) == {} == found(failure_rate={"above": 0.5})
    assert found(slo={"runs": 2}) == {"slo": "2 runs missed their service level in the last 60 min"}
    assert found(slo={"runs": 3}) == {} == found(backlog={"runs": 1}) == found()
    for _ in range(2):
        queued = DagsterRun(job_name="job", status=DagsterRunStatus.QUEUED, remote_job_origin=job_origin("job"))
        past.instance.add_run(queued)
    ((key, words),) = found(backlog={"runs": 1}).items()
    assert (key, words) == ("backlog/runs", "2 runs wait, more than 1")
    assert found(backlog={"runs": 2, "seconds": 1000}) == {}


def test_a_silent_worker(past: Past) -> None:
    ledger = Ledger.of_instance(past.instance)
    ledger.register("host", [this_machine()], 0.0)
    assert holding(past.instance, past.table, rules(lost_workers={})) == {}
    from unittest import mock

    with mock.patch("mloc_dagster.placement.ledger.rows.time.time", return_value=time.time() + 3600):
        (words,) = holding(past.instance, past.table, rules(lost_workers={})).values()
    assert words.endswith("has fallen silent")


def test_the_sensor_tells_by_the_file_of_the_home(past: Past, receiver: Receiver) -> None:
    def tick(cursor: str | None) -> tuple[str, str | None]:
        context = build_sensor_context(past.instance, sensor_name="alerts", cursor=cursor)
        told = alerts_sensor.evaluate_tick(context)
        return told.skip_message or "", told.cursor

    assert tick(None)[0].startswith("nobody is told: there are no channels in")
    file = past.home.root / "alerts.yaml"
    written = {"rules": {"failure_rate": {"above": 0.5, "least_runs": 1}}}
    file.write_text(yaml.safe_dump({**written, "channels": [{"type": "slack", "url": receiver.address}]}))
    past.run(began=time.time() - 60, seconds=10, status=DagsterRunStatus.FAILURE)
    said, cursor = tick(None)
    assert said == "told slack of 1" and len(receiver.taken) == 1
    assert tick(cursor)[0] == "nothing new" and len(receiver.taken) == 1
    file.write_text("channels: [{type: email, host: h}]\nrules: {failure_rat: {above: 1}}\n")
    assert "did you mean failure_rate?" in tick(cursor)[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("channels: [{type: slack}]", "lacks url"),
        ("channels: [{type: email, host: h, sender: a, to: [b], password: hunter2}]", "holds a secret itself"),
        ("rules: {backlog: {}}", "bounds nothing"),
        ("rules: {failure_rate: {above: 2}}", "rules.failure_rate.above"),
    ],
)
def test_a_file_with_faults(past: Past, text: str, told: str) -> None:
    (past.home.root / "alerts.yaml").write_text(text)
    with pytest.raises(SpecError, match=told) as error:
        settings_of(past.home)
    assert "hunter2" not in str(error.value)


def test_a_file_that_is_named_and_not_there(past: Past, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_ALERTS", str(tmp_path / "no.yaml"))
    with pytest.raises(SpecError, match="MLOC_ALERTS names no file"):
        settings_of(past.home)


def test_the_file_of_the_page_is_valid(past: Past) -> None:
    page = (Path(__file__).absolute().parents[2] / "docs" / "alerts.md").read_text("utf-8")
    (written,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (past.home.root / "alerts.yaml").write_text(written)
    settings = settings_of(past.home)
    assert [one.type for one in settings.channels] == ["slack", "webhook", "email"]
    assert all(value is not None for value in vars(settings.rules).values())
