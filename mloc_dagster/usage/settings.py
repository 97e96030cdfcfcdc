"""`usage.yaml`: what hardware costs, and who may use how much of it. In the home, or where MLOC_USAGE says."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec import gpu as gpu_names
from mloc_dagster.spec.base import Section
from mloc_dagster.spec.faults import Fault, SpecError, shown
from mloc_dagster.spec.settings import parse, read_text
from mloc_dagster.spec.tree import Mapping
from mloc_dagster.spec.typed import origin_at
from mloc_dagster.store.home import Home

Price = Annotated[float, Field(ge=0)]
Period = Literal["day", "month", "total"]
MEASURES = ("gpu_hours", "cpu_hours", "cost")


class Prices(Section):
    """What an hour costs, in `currency`."""

    gpu_hour: dict[str, Price] = Field(default_factory=dict)
    """By device name such as a100-80gb; `any` is the price of those that are not named."""
    cpu_hour: Price = 0.0
    """Of one core."""

    def of_gpu(self, name: str) -> float | None:
        """Return the price of an hour of a device, or None."""
        named = {gpu_names.normalise(key): price for key, price in self.gpu_hour.items()}
        return named.get(gpu_names.normalise(name), named.get(gpu_names.ANY))


class Budget(Section):
    """So much for an owner, a project, an owner's work in a project, or (without both) for all together."""

    owner: str | None = None
    project: str | None = None
    gpu_hours: Price | None = None
    cpu_hours: Price | None = None
    cost: Price | None = None
    """In `currency`, by `prices`."""
    period: Period = "month"
    """Days and months are those of UTC."""
    action: Literal["warn", "refuse"] = "warn"
    """What happens to new work when it is used up; what runs or waits already goes on."""


class UsageSettings(Section):
    """The file."""

    currency: Annotated[str, Field(min_length=1, max_length=20)] = "EUR"
    prices: Prices = Prices()
    budgets: list[Budget] = Field(default_factory=list)


def settings_of(home: Home) -> UsageSettings:
    """Return the settings of a home, empty ones without a file; raises SpecError with every fault of it."""
    path = settings_file(home)
    if path.is_file():
        return _parsed(read_text(path), str(path))
    if os.environ.get("MLOC_USAGE"):
        raise SpecError([Fault(0, 0, "", "MLOC_USAGE names no file", "", "check the path, or unset it", str(path))])
    return UsageSettings()


def settings_file(home: Home) -> Path:
    """Where the settings of a home are, or would be."""
    return Path(os.environ.get("MLOC_USAGE") or home.root / "usage.yaml")


@lru_cache(maxsize=4)
def _parsed(text: str, file: str) -> UsageSettings:
    typed, tree = parse(text, file, UsageSettings, "prices")
    faults = [fault.in_file(file) for fault in _conflicts(typed, tree)]
    if faults:
        raise SpecError(faults)
    return typed


def _conflicts(settings: UsageSettings, tree: Mapping) -> list[Fault]:
    faults: list[Fault] = []

    def fault(location: tuple[str | int, ...], what: str, value: object, way_out: str) -> None:
        origin = origin_at(tree, location)
        assert origin is not None
        faults.append(Fault(*origin.value, origin.text, what, shown(value), way_out))

    for number, budget in enumerate(settings.budgets):
        if all(getattr(budget, name) is None for name in MEASURES):
            fault(("budgets", number), "bounds nothing", "", f"write one of {', '.join(MEASURES)}")
        if budget.cost is not None and not (settings.prices.gpu_hour or settings.prices.cpu_hour):
            fault(("budgets", number, "cost"), "cannot be counted: there are no prices", budget.cost, "write prices")
    seen: dict[str, str] = {}
    for key in settings.prices.gpu_hour:
        name = gpu_names.normalise(key)
        if name in seen:
            what = f"is the same device as {seen[name]}"
            fault(("prices", "gpu_hour", key), what, settings.prices.gpu_hour[key], "write one price for it")
        seen.setdefault(name, key)
    return faults
