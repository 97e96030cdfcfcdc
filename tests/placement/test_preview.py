"""What `mloc plan` shows is what a run would do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mloc_dagster.placement import inventory
from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.local.preview import PlannedStep, preview
from mloc_dagster.placement.local.work import RunInfo
from mloc_dagster.plan import Plan
from tests.placement.conftest import next_run, plan_of, run_all
from tests.plan.test_memory import LLAMA_3_8B

TWO = "  stages:\n    - {name: a, taskType: echo, echo: 1}\n    - {name: b, taskType: echo, echo: '${a.result.echo}'}\n"
GENERATE = """\
  taskType: inference
  model: {source: {type: local, identifier: ./model}}
  data: {dataset_name: org/rows, split: "train[60:100]"}
  inference: {max_tokens: 512}
  resources: {hardware: {gpu: {type: a100-80gb}}}
"""


def rows(plan: Plan, info: RunInfo, *, fresh: bool = False) -> dict[str, PlannedStep]:
    return {row.key: row for row in preview(plan, info.home, fresh=fresh)}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """GPUs of this machine, to be filled; none at first."""
    devices: list[Device] = []
    monkeypatch.setattr(inventory, "gpus", lambda: tuple(devices))
    return devices


def test_it_tells_what_will_be_reused(info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of(TWO, tmp_path)
    assert [row.state for row in rows(plan, info).values()] == ["to run", "to run"]
    run_all(plan, info)
    assert [row.state for row in rows(plan, info).values()] == ["reused from task-1", "reused from task-1"]
    assert [row.state for row in rows(plan, info, fresh=True).values()] == ["to run", "to run"]
    changed = plan_of(TWO.replace("'${a", "'x ${a"), tmp_path)
    told = {key: row.reused_from for key, row in rows(changed, info).items()}
    outcomes = run_all(changed, next_run(info, 2))
    assert told == {"t/a": "task-1", "t/b": None}
    assert [bool(outcome.reused_from) for outcome in outcomes] == [True, False]


def test_it_starts_and_pulls_nothing(info: RunInfo, tmp_path: Path) -> None:
    rows(plan_of(GENERATE, tmp_path), info)
    assert not info.home.root.exists()


def test_a_cached_source_is_told_and_gives_the_digest(info: RunInfo, tmp_path: Path) -> None:
    text = "  taskType: sft\n  model: {source: {type: local, identifier: ./m.safetensors-folder}}\n" \
           "  data: {prompts: [a]}\n"  # fmt: skip
    plan = plan_of(text, tmp_path)
    key = plan.steps[0].key
    assert rows(plan, info)[key].state == "to pull"
    folder = tmp_path / "m.safetensors-folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    assert rows(plan, info)[key].state.startswith("cached (")


def test_a_gpu_that_is_here(info: RunInfo, tmp_path: Path, machine: list[Device]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_3_8B))
    machine.append(Device(0, "a100-80gb", 80 << 30))
    row = rows(plan_of(GENERATE, tmp_path), info)["t/inference"]
    assert (row.device, row.fits, row.state) == ("gpu 0", True, "to run")
    assert row.memory and 16e9 < row.memory < 24e9 and row.band == 0.2
    assert row.gpu_hours == pytest.approx(2 * 8.03e9 * 40 * 1024 / (312e12 * 0.1) / 3600, rel=0.01)  # 40 rows
    assert row.notes == ()
    machine[0] = Device(0, "a100-80gb", 8 << 30)
    small = rows(plan_of(GENERATE, tmp_path), info)["t/inference"]
    assert not small.fits and small.notes[0].endswith("the device has 8.0 GiB")


def test_a_gpu_that_is_not_here_is_sized_for_what_was_asked(
    info: RunInfo, tmp_path: Path, machine: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(GENERATE.replace("./model", "./Llama-8B"), tmp_path)
    row = rows(plan, info)["t/inference"]
    assert (row.device, row.state, row.fits) == ("nowhere", "refused", True)
    assert row.notes[0].startswith("needs 1 × a100-80gb GPU, this machine has none")
    assert "memory is guessed from the model's name; it is exact once the model is pulled" in row.notes
    assert row.memory and 16e9 < row.memory < 24e9 and row.gpu_hours
    monkeypatch.setenv("MLOC_ON", "cpu")
    on_cpu = rows(plan, info)["t/inference"]
    assert (on_cpu.device, on_cpu.state, on_cpu.gpu_hours) == ("cpu", "to run", None)
    assert on_cpu.notes[0] == "1 × a100-80gb asked for, run on the CPU"
    assert on_cpu.memory and on_cpu.memory > 32e9  # float32


@pytest.mark.parametrize(
    ("data", "count"),
    [
        ("{type: list, items: [a, b, c]}", 3),
        ("{dataset_name: o/r, split: 'train[:200]'}", 200),
        ("{dataset_name: o/r, split: 'train[:200]', max_samples: 50}", 50),
        ("{dataset_name: o/r, split: 'train[:20]', max_samples: 50}", 20),
        ("{dataset_name: o/r, split: 'train[-50:-10]'}", 40),
        ("{dataset_name: o/r, split: 'train[-50:]'}", 50),
        ("{dataset_name: o/r, split: 'train[:1%]'}", None),
        ("{dataset_name: o/r, split: 'train[60:]'}", None),
        ("{dataset_name: o/r}", None),
    ],
)
def test_gpu_hours_go_by_the_rows_that_are_read(
    info: RunInfo, tmp_path: Path, machine: list[Device], data: str, count: int | None
) -> None:
    machine.append(Device(0, "a100-80gb", 80 << 30))
    text = GENERATE.replace("./model", "./Llama-8B").replace(
        '{dataset_name: org/rows, split: "train[60:100]"}', data
    )  # fmt: skip
    hours = rows(plan_of(text, tmp_path), info)["t/inference"].gpu_hours
    expected = count and 2 * 8e9 * count * 1024 / (312e12 * 0.1) / 3600
    assert hours == (pytest.approx(expected) if expected else None)


def test_a_delivery_is_shown_without_a_login(info: RunInfo, tmp_path: Path) -> None:
    text = "  taskType: echo\n  echo: 1\n  output: {destination: {type: http, url: 'https://me:hunter2@example.org'}}\n"
    row = rows(plan_of(text, tmp_path), info)["published/t/echo"]
    assert row.notes == ("to http https://***@example.org",) and row.depends_on == ("t/echo",)
    assert json.loads(json.dumps(row.as_dict()))["kind"] == "publish"
