"""Prices and budgets of `usage.yaml`: what is told, what is refused, and faults of the file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from dagster import DagsterRunStatus as Status

from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.ledger.grant import LEASE
from mloc_dagster.placement.workers.need import Need
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec import SpecError
from mloc_dagster.usage import fill
from mloc_dagster.usage.budgets import BudgetExceeded, check
from mloc_dagster.usage.held import HELD
from mloc_dagster.usage.settings import settings_of
from mloc_dagster.usage.stats import Asked, stats
from tests.cli.conftest import ECHO, Mloc, mloc
from tests.usage.conftest import Past

__all__ = ["mloc"]


def settings(past: Past, text: str) -> None:
    past.home.root.mkdir(parents=True, exist_ok=True)
    (past.home.root / "usage.yaml").write_text(text, "utf-8")


def test_cost_by_a_table_of_prices(past: Past) -> None:
    settings(past, "currency: CHF\nprices: {gpu_hour: {NVIDIA A100-80GB: 2.5}, cpu_hour: 0.1}\n")
    past.run(gpus=[("a100-80gb", 1000), ("l4", 1000)], cpu=2000, seconds=1800)
    fill.refresh(past.instance, past.table)
    told = stats(past.table, Asked(), settings_of(past.home))["cost"]
    assert told == {"amount": 1.35, "currency": "CHF", "unpriced": ["l4"]}
    settings(past, "prices: {gpu_hour: {a100-80gb: 2.5, any: 1}}\n")
    assert stats(past.table, Asked(), settings_of(past.home))["cost"]["amount"] == 1.75


def test_a_budget_warns_or_refuses_with_the_figures(past: Past) -> None:
    now = time.time()
    past.run(gpus=[("l4", 1000)], began=now - 7200, seconds=7200)
    fill.refresh(past.instance, past.table)
    settings(past, "budgets: [{owner: ann, gpu_hours: 2, period: total, action: refuse}]\n")
    with pytest.raises(BudgetExceeded, match=r"owner ann has used 2 of 2 GPU-hours in all") as refused:
        check(past.instance, past.table, past.home, "ann", "demo")
    assert "usage.yaml" in refused.value.way_out
    assert check(past.instance, past.table, past.home, "bob", "demo") == []
    settings(past, "budgets: [{project: demo, gpu_hours: 1.5, period: total}, {owner: ann, gpu_hours: 3}]\n")
    (told,) = check(past.instance, past.table, past.home, "ann", "demo")
    assert told.action == "warn" and "project demo has used 2 of 1.5" in str(told)


def test_runs_that_go_on_count_for_budgets(past: Past) -> None:
    settings(past, "budgets: [{owner: ann, gpu_hours: 1, period: total, action: refuse}]\n")
    run_id = past.run(began=time.time() - 7200, status=Status.STARTED, tags={LEASE: ""})
    assert check(past.instance, past.table, past.home, "ann", "demo") == []
    held = {"run_id": run_id, "devices": [["l4", 1000]], "cpu": 1000}  # what a run without the queue notes
    past.instance.add_run_tags(run_id, {HELD: json.dumps(held)})
    with pytest.raises(BudgetExceeded, match="2 of 1 GPU-hours in all, 2 of it by runs that go on"):
        check(past.instance, past.table, past.home, "ann", "demo")


def test_a_run_that_is_over_and_still_has_its_lease_counts_once(past: Past) -> None:
    run_id = past.run(began=time.time() - 7200, seconds=3600)
    ledger = Ledger.of_instance(past.instance)
    ledger.register("here", [Worker("w", 4000, 1 << 30)], 0.0)
    assert ledger.claim(run_id, "ann", Need(cpu=1000), 600, worker="w")
    fill.refresh(past.instance, past.table)
    settings(past, "budgets: [{owner: ann, cpu_hours: 1, period: total}]\n")
    (told,) = check(past.instance, past.table, past.home, "ann", "demo")
    assert "has used 1 of 1 core-hours in all" in str(told) and "go on" not in str(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("budgets: [{owner: ann}]\n", "bounds nothing"),
        ("budgets: [{owner: ann, gpuhours: 1}]\n", "gpu_hours"),
        ("budgets: [{owner: ann, cost: 1}]\n", "there are no prices"),
        ("prices: {gpu_hour: {a100-80gb: 1, NVIDIA A100-SXM4-80GB: 2}}\n", "same device"),
        ("prices: {cpu_hour: -1}\n", "cpu_hour"),
        ("- 1\n", "must be a map"),
    ],
)
def test_faults_of_the_file(past: Past, text: str, told: str) -> None:
    settings(past, text)
    with pytest.raises(SpecError, match=told):
        settings_of(past.home)


def test_the_command_shows_usage_and_keeps_budgets(mloc: Mloc, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(ECHO.format(name="t"))
    assert mloc("run", "t.yaml").code == 0
    shown = mloc("usage", "--by", "stage", COLUMNS="200")
    assert shown.code == 0 and "t/first" in shown.out and "core-hours" in shown.out
    (mloc.home.root / "usage.yaml").write_text("budgets: [{owner: alice, cpu_hours: 0, action: refuse}]\n")
    refused = mloc("submit", "t.yaml")
    assert refused.code == 2 and "owner alice has used" in refused.errors and "usage.yaml" in refused.errors
    rebuilt = mloc.here("usage", "--rebuild", "--json")
    assert rebuilt.code == 0 and "1 runs were read, 0 of them gave other figures" in rebuilt.errors
    assert mloc.here("usage", "--by", "weekday").code == 2 and mloc.here("usage", "--since", "x").code == 2
