"""`alerts.yaml`: what is told, and to whom. In the home, or where MLOC_ALERTS says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mloc_dagster.spec.base import Fraction, Positive, Section
from mloc_dagster.spec.faults import Fault, SpecError
from mloc_dagster.spec.settings import parse, read_text
from mloc_dagster.spec.tree import Mapping
from mloc_dagster.spec.typed import origin_at
from mloc_dagster.store.home import Home

_NEEDED = {"email": ("host", "sender", "to")}
_NAME = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


class FailureRate(Section):
    """Told when more than a part of the runs that ended lately have failed."""

    above: Fraction
    minutes: Positive = 60
    least_runs: Positive = 5
    """Fewer runs than this tell nothing."""


class Backlog(Section):
    """Told when more runs wait than this, or one waits longer."""

    runs: Positive | None = None
    seconds: Positive | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.runs is None and self.seconds is None:
            raise ValueError("bounds nothing; write runs or seconds")
        return self


class MissedSlo(Section):
    """Told when so many runs missed their service level lately, those that go on included."""

    runs: Positive = 1
    minutes: Positive = 60


class LostWorkers(Section):
    """Told when a worker has fallen silent."""


class Rules(Section):
    """What is looked at; what is absent is not."""

    failure_rate: FailureRate | None = None
    backlog: Backlog | None = None
    slo: MissedSlo | None = None
    lost_workers: LostWorkers | None = None


class Channel(Section):
    """One way to tell. Values may name the environment: `${NAME}`."""

    type: Literal["slack", "webhook", "email"]
    """slack: a webhook that takes {"text": …}; webhook: one that takes the alerts as JSON, signed on request."""
    url: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    signing_secret: str | None = None
    """As for deliveries: `${NAME}`."""
    host: str | None = None
    """Of the mail server."""
    port: Annotated[int, Field(gt=0, lt=65536)] = 587
    tls: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    password: str | None = None
    sender: str | None = None
    to: list[str] = Field(default_factory=list)
    timeout_sec: Annotated[float, Field(gt=0)] = 10.0

    @property
    def name(self) -> str:
        """What it is called, without secrets that its address may hold."""
        return f"email to {', '.join(self.to)}" if self.type == "email" else self.type


class AlertSettings(Section):
    """The file."""

    rules: Rules = Rules()
    channels: list[Channel] = Field(default_factory=list)
    repeat_minutes: Positive = 240
    """What still holds is told again after so long."""


def settings_of(home: Home) -> AlertSettings:
    """Return the settings of a home, empty ones without a file; raises SpecError with every fault of it."""
    path = settings_file(home)
    if path.is_file():
        return _parsed(read_text(path), str(path))
    if os.environ.get("MLOC_ALERTS"):
        raise SpecError([Fault(0, 0, "", "MLOC_ALERTS names no file", "", "check the path, or unset it", str(path))])
    return AlertSettings()


def settings_file(home: Home) -> Path:
    """Where the settings of a home are, or would be."""
    return Path(os.environ.get("MLOC_ALERTS") or home.root / "alerts.yaml")


@lru_cache(maxsize=4)
def _parsed(text: str, file: str) -> AlertSettings:
    typed, tree = parse(text, file, AlertSettings, "rules")
    faults = [fault.in_file(file) for fault in _conflicts(typed, tree)]
    if faults:
        raise SpecError(faults)
    return typed


def _conflicts(settings: AlertSettings, tree: Mapping) -> Iterator[Fault]:
    """Faults of channels, told without their values, which may be secrets."""
    for number, channel in enumerate(settings.channels):
        wanted = _NEEDED.get(channel.type, ("url",))
        place = origin_at(tree, ("channels", number))
        missing = [name for name in wanted if not getattr(channel, name)]
        if place and missing:
            what = f"lacks {', '.join(missing)}"
            yield Fault(*place.value, place.text, what, "", f"type {channel.type} needs {', '.join(wanted)}")
        for name in ("password", "signing_secret"):
            place = origin_at(tree, ("channels", number, name))
            if place and getattr(channel, name) and not _NAME.fullmatch(getattr(channel, name)):
                yield Fault(*place.value, place.text, "holds a secret itself", "***", "export it, and write ${NAME}")
