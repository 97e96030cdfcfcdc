"""Logs of our processes: as text for people, or a JSON object a line (`MLOC_LOG_FORMAT=json`) with task, run and step.

No secret gets in: values of environment variables whose names say that they are secret, our tokens, bearer tokens and
passwords in addresses are replaced.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, TextIO, get_args

Format = Literal["text", "json"]
SETTING = "MLOC_LOG_FORMAT"
_OURS = ("mloc", "dagster", "dagster-webserver", "stdout", "stderr")
"""Of these all is told from INFO up, of other libraries from WARNING up."""
IDS = ("task_id", "run_id", "step")
"""What a record may say that it is about, as `extra`, or by `about`."""
TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_HIDDEN = "***"
_RECORD = '{"time": "'
"""How a line that is a record begins."""
_LEAST_SECRET = 8
"""Characters; shorter values would eat other text."""
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY)", re.IGNORECASE)
_SECRET_TEXT = (
    (re.compile(r"mloc_([0-9a-f]{8})_[\w-]{20,}"), rf"mloc_\1_{_HIDDEN}"),
    (re.compile(r"(?i)(bearer\s+)[^\s\"',]+"), rf"\1{_HIDDEN}"),
    (re.compile(r"(://[^/:@\s]*):[^/@\s]+@"), rf"\1:{_HIDDEN}@"),
    (re.compile(r"([?&]code=)[\w-]+"), rf"\1{_HIDDEN}"),
)
_current: ContextVar[Mapping[str, str]] = ContextVar("mloc_about", default=MappingProxyType({}))


class BadFormat(ValueError):
    """A setting that names no format."""


def chosen() -> Format:
    """Return the format that the environment asks for, text where it does not; raises BadFormat."""
    text = os.environ.get(SETTING) or "text"
    found: Format | None = next((one for one in get_args(Format) if one == text), None)
    if found is None:
        raise BadFormat(f"{SETTING} is {text!r}; write {' or '.join(get_args(Format))}")
    return found


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Have all that is logged meanwhile say what it is about: task_id, run_id, step."""
    token = _current.set({**_current.get(), **ids})
    try:
        yield
    finally:
        _current.reset(token)


def configure(service: str) -> Format:
    """Have this process log in the format of its environment, on standard error; returns it. Raises BadFormat.

    As JSON, whatever is printed on standard output and error becomes records, too.
    """
    wanted = chosen()
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(handler)
    root.addHandler(handler_of(service, wanted))
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for name, level in (("stdout", logging.INFO), ("stderr", logging.WARNING)):
        stream, original = getattr(sys, name), getattr(sys, f"__{name}__")
        if isinstance(stream, _Lines):
            setattr(sys, name, original)
        if wanted == "json" and original is not None:
            setattr(sys, name, _Lines(logging.getLogger(name), level, original))
    return wanted


def adopt(*loggers: str) -> None:
    """Have loggers that a library gave handlers of its own log as all others do."""
    for name in loggers:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def handler_of(service: str, wanted: Format) -> logging.Handler:
    """Return a handler that writes to standard error."""
    handler = _Handler()
    handler.setFormatter(JsonLines(service) if wanted == "json" else _Text(TEXT))
    return handler


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, service, logger, message, what it is about, and an exception."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": hide(_message(record)),
            **_ids(record),
            "pid": record.process,
        }
        if record.exc_info:
            told["exception"] = hide(self.formatException(record.exc_info))
        return json.dumps(told, ensure_ascii=False, default=str)


def hide(text: str) -> str:
    """Return a text without what is secret in it."""
    for name, value in os.environ.items():
        if len(value) >= _LEAST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, _HIDDEN)
    for pattern, instead in _SECRET_TEXT:
        text = pattern.sub(instead, text)
    return text


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return hide(super().format(record))


class _Handler(logging.StreamHandler):
    """Writes to the process's own standard error, whatever takes its place."""

    def __init__(self) -> None:
        super().__init__(sys.__stderr__)


class _Lines(io.TextIOBase):
    """A stream whose lines become records; its descriptor stays the original's, for child processes."""

    def __init__(self, logger: logging.Logger, level: int, original: TextIO) -> None:
        self._logger, self._level, self._original, self._rest = logger, level, original, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith(_RECORD) and line.endswith("}"):  # Dagster repeats here what it captured of a step
                self._original.write(f"{line}\n")
                self._original.flush()
            elif line.strip():
                self._logger.log(self._level, "%s", line.rstrip())
        return len(text)

    def flush(self) -> None:
        if self._rest.strip():
            self.write("\n")

    def fileno(self) -> int:
        return self._original.fileno()

    def writable(self) -> bool:
        return True


def _message(record: logging.LogRecord) -> str:
    """What was said; of Dagster's own records without the ids and columns that it puts around it."""
    meta = getattr(record, "dagster_meta", None)
    if not isinstance(meta, Mapping):
        return record.getMessage()
    event = getattr(meta.get("dagster_event"), "event_type_value", None)
    return f"{event}: {meta['orig_message']}" if event else str(meta["orig_message"])


def _ids(record: logging.LogRecord) -> dict[str, str]:
    meta = getattr(record, "dagster_meta", None)
    dagsters: dict[str, object] = {}
    if isinstance(meta, Mapping):
        tags = meta.get("job_tags") or {}
        dagsters = {"run_id": meta.get("run_id"), "step": meta.get("step_key"), "task_id": tags.get("mloc/task_id")}
    given = {name: getattr(record, name, None) for name in IDS}
    found = {name: given[name] or dagsters.get(name) or _current.get().get(name) for name in IDS}
    return {name: str(value) for name, value in found.items() if value}
