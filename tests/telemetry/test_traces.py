"""Spans and their parents, with OpenTelemetry's own exporter and a collector on loopback."""

from __future__ import annotations

import os
import sys
import time

import pytest

from mloc_dagster.telemetry import traces
from mloc_dagster.telemetry.traceparent import valid
from tests.telemetry.collector import collecting

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (PARENT, PARENT),
        (f"01-{'ab' * 16}-{'cd' * 8}-01-more", PARENT),  # of a later version what is known is read
        (f"{PARENT}-more", None), (f"ff-{'ab' * 16}-{'cd' * 8}-01", None), (f"00-{'0' * 32}-{'cd' * 8}-01", None),
        (f"00-{'ab' * 16}-{'0' * 16}-01", None), (PARENT.upper(), None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_as_if_not_sent(given: str | None, kept: str | None) -> None:
    assert valid(given) == kept


def test_spans_have_their_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        monkeypatch.setenv(traces.SETTING, "otlp")
        mine = traces.Traces.of_environment("test")
        with mine.span("outer", PARENT, {"mloc.task_id": "t"}) as outer:
            assert outer is not None and outer.split("-")[1] == "ab" * 16
            mine.past("queue", outer, 100.0, 101.5, {})
            with pytest.raises(KeyError), mine.span("inner", outer, {}):
                raise KeyError
        assert collector.spans == []
        mine.send()
        by_name = {span.name: span for span in collector.spans}
        assert {span.trace for span in collector.spans} == {"ab" * 16}
        assert by_name["outer"].parent == "cd" * 8 and by_name["outer"].service == "mloc-test"
        assert by_name["queue"].parent == by_name["inner"].parent == outer.split("-")[2] == by_name["outer"].id
        assert by_name["queue"].ended - by_name["queue"].begun == 1_500_000_000


def test_a_collector_that_is_away_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(traces.SETTING, "otlp")
    mine = traces.Traces.of_environment("test")
    with mine.span("one", None, {}):
        pass
    begun = time.monotonic()
    mine.send()
    assert time.monotonic() - begun < 15


def test_without_traces_a_parent_is_handed_on() -> None:
    mine = traces.Traces("test", None)
    with mine.span("one", PARENT, {}) as span:
        assert span == PARENT
    with mine.span("one", None, {}) as span:
        assert span is None
    assert not mine.on


def test_a_forked_process_has_spans_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(traces.SETTING, "otlp")
    traces.forget()
    mine, made = traces.of_process("test")
    assert made and traces.of_process("test") == (mine, False)
    child = os.fork()
    if child == 0:
        os._exit(0 if traces.of_process("test")[1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    traces.forget()


def test_a_missing_extra_is_named_with_its_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(traces.SETTING, "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.setattr(traces, "find_spec", lambda name: None)
    with pytest.raises(traces.Unusable, match=r"pip install 'mloc-dagster\[otel\]'"):
        traces.wanted()
    monkeypatch.setenv(traces.SETTING, "zipkin")
    with pytest.raises(traces.Unusable, match="'zipkin'; write otlp"):
        traces.wanted()
