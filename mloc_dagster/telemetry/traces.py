"""Traces of tasks for OpenTelemetry: submit, queue, place, and each step. On with `MLOC_TRACES=otlp`; where they go is
said by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, ...).

Spans are kept and sent together, in one request and with a bound on its time: processes that fork have no thread that
could send, and a collector that is away keeps no task waiting.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from mloc_dagster.telemetry.traceparent import valid

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

SETTING = "MLOC_TRACES"
INSTALL = "pip install 'mloc-dagster[otel]'"
_MOST_KEPT = 2000
_SEND_SECONDS = 5.0
_mine: tuple[int, Traces] | None = None


class Unusable(Exception):
    """Traces that were asked for and cannot be made; the message says why and what to do."""


class Exporter(Protocol):
    """What sends spans; OpenTelemetry's exporters do."""

    def export(self, spans: list[ReadableSpan]) -> object:
        """Send them."""
        ...


def wanted() -> bool:
    """Return whether traces were asked for; raises Unusable."""
    asked = os.environ.get(SETTING) or ""
    if asked in ("", "0", "none"):
        return False
    if asked != "otlp":
        raise Unusable(f"{SETTING} is {asked!r}; write otlp, or leave it out")
    for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        if not _there(module):
            raise Unusable(f"{SETTING} is otlp, but {module} is not installed; {INSTALL}")
    return True


class Traces:
    """The spans of one process. Without traces a parent is handed on as it came, and nothing is kept."""

    def __init__(self, service: str, exporter: Exporter | None) -> None:
        self._exporter, self._lock = exporter, threading.Lock()
        self._kept: list[ReadableSpan] = []
        self._provider = _provider(service, self) if exporter else None

    @classmethod
    def of_environment(cls, service: str) -> Traces:
        """Return those that the environment asks for; raises Unusable."""
        return cls(service, _otlp() if wanted() else None)

    @contextmanager
    def span(self, name: str, parent: str | None, attributes: Mapping[str, str]) -> Iterator[str | None]:
        """Trace what is done meanwhile; gives the traceparent of the span, or the parent's where nothing is traced."""
        if self._provider is None:
            yield valid(parent)
            return
        from opentelemetry.trace import StatusCode

        span = self._provider.get_tracer("mloc").start_span(name, _context(parent), attributes=dict(attributes))
        try:
            yield _text(span.get_span_context())
        except BaseException as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.end()

    def past(self, name: str, parent: str | None, begun: float, ended: float, attributes: Mapping[str, str]) -> None:
        """Tell of something that is over; times in seconds since the epoch."""
        if self._provider is None:
            return
        tracer = self._provider.get_tracer("mloc")
        span = tracer.start_span(name, _context(parent), attributes=dict(attributes), start_time=int(begun * 1e9))
        span.end(int(max(begun, ended) * 1e9))

    @property
    def on(self) -> bool:
        """Whether anything is traced."""
        return self._provider is not None

    def keep(self, span: ReadableSpan) -> None:
        """Keep a span that is over until the next `send`; with very many the oldest go."""
        with self._lock:
            self._kept.append(span)
            del self._kept[:-_MOST_KEPT]

    def send(self) -> None:
        """Send what is kept. What cannot be sent is lost: a trace is worth no wait."""
        with self._lock:
            spans, self._kept = self._kept, []
        if spans and self._exporter is not None:
            self._exporter.export(spans)

    @contextmanager
    def sending(self, every_seconds: float) -> Iterator[None]:
        """Send again and again from a thread, and once at the end; for processes that do not fork."""
        if self._provider is None:
            yield
            return
        over = threading.Event()

        def loop() -> None:
            while not over.wait(every_seconds):
                self.send()

        thread = threading.Thread(target=loop, name="traces", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_SEND_SECONDS)
            self.send()


def of_process(service: str) -> tuple[Traces, bool]:
    """Return the traces of this process, and whether this call made them: then the caller sends them.

    A process that was forked has its own. Raises Unusable.
    """
    global _mine
    if _mine is not None and _mine[0] == os.getpid():
        return _mine[1], False
    _mine = os.getpid(), Traces.of_environment(service)
    return _mine[1], True


def forget() -> None:
    """Have the next `of_process` look at the environment again: a process goes on with another run."""
    global _mine
    _mine = None


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _otlp() -> Exporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(timeout=_SEND_SECONDS)  # pyright: ignore[reportReturnType, reportArgumentType] - seconds


def _provider(service: str, traces: Traces) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    class Keeping(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            traces.keep(span)

    provider = TracerProvider(resource=Resource.create({"service.name": f"mloc-{service}"}), shutdown_on_exit=False)
    provider.add_span_processor(Keeping())
    return provider


def _context(parent: str | None) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    text = valid(parent)
    carrier = {"traceparent": text} if text else {}
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _text(context) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
