"""workers.yaml: what it gives, and every fault at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.workers.declared import load_workers, workers_of
from mloc_dagster.placement.workers.detect import this_machine
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec import SpecError
from mloc_dagster.store.home import Home

GIB = 1 << 30
TWO = """\
workers:
  - name: gpu-a
    cpu: 16
    memory: 64Gi
    gpus:
      - {type: NVIDIA A100-SXM4-80GB, indexes: [1, 0]}
      - {type: l4, indexes: [2], memory: 20Gi}
  - {name: cpu-b, cpu: 500m, memory: 2GiB}
"""


def faults(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "workers.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as error:
        load_workers(path)
    return [str(fault).removeprefix(f"{tmp_path}/") for fault in error.value.faults]


def test_what_is_declared(tmp_path: Path) -> None:
    (tmp_path / "workers.yaml").write_text(TWO)
    a100, l4 = [Device(i, "a100-80gb", 80 * GIB) for i in (0, 1)], Device(2, "l4", 20 * GIB)
    expected = (Worker("gpu-a", 16_000, 64 * GIB, (*a100, l4)), Worker("cpu-b", 500, 2 * GIB))
    assert workers_of(Home(tmp_path)) == expected


def test_all_faults_at_once_with_their_places(tmp_path: Path) -> None:
    text = "workers:\n  - {name: a b, cpu: many, memory: 1Gi}\n  - name: c\n    cpu: 1\n    memroy: 1Gi\n"
    found = faults(tmp_path, text)
    assert len(found) == 3
    assert found[0].startswith("workers.yaml:2:12 workers[0].name: is not of the right form (found 'a b')")
    assert found[1].startswith("workers.yaml:2:22 workers[0].cpu: is not a quantity (found 'many'); write")
    assert found[2].startswith("workers.yaml:5:5 workers[1].memroy: ") and found[2].endswith("did you mean memory?")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workers: []", "workers.yaml:1:10 workers: "),
        ("- a", "workers.yaml:1:1 must be a map"),
        ("workers:\n- {name: a, cpu: 0, memory: 1Gi}", "workers.yaml:2:18 workers[0].cpu: is nothing"),
        (
            "workers:\n- {name: a, cpu: 1, memory: 1Gi}\n- {name: a, cpu: 1, memory: 1Gi}",
            "workers.yaml:3:10 workers[1].name: is the name of another worker, too",
        ),
        (TWO.replace("[2]", "[1]"), "workers.yaml:7:29 workers[0].gpus[1].indexes: GPU 1 belongs to gpu-a already"),
        ("workers:\n- {name: a, cpu: 1, memory: '${x.result.y}'}", "workers.yaml:"),
    ],
)
def test_what_cannot_be(text: str, told: str, tmp_path: Path) -> None:
    found = faults(tmp_path, text)
    assert any(one.startswith(told) for one in found), found


def test_without_a_file_it_is_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers_of(Home(tmp_path)) == (this_machine(),)
    monkeypatch.setenv("MLOC_WORKERS", str(tmp_path / "none.yaml"))
    with pytest.raises(SpecError, match="MLOC_WORKERS names no file"):
        workers_of(Home(tmp_path))
