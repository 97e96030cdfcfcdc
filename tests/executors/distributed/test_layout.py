"""How many processes train, and where."""

from __future__ import annotations

from typing import Any

import pytest

from executors.base import ExecutorError
from executors.distributed.layout import Layout, layout_of
from executors.distributed.nodes import Node
from mloc_dagster.spec.stage import StageSpec

FOUR = ("2", "3", "6", "7")


def layout(devices: tuple[str, ...] = (), replicas: int = 1, **training: Any) -> Layout:
    spec = {"task_type": "sft", "training": training, "resources": {"replicas": replicas}}
    return layout_of(StageSpec.model_validate(spec), devices)


def test_a_cpu_has_one_process_unless_the_file_says_more() -> None:
    assert layout() == Layout()
    assert layout(nproc_per_node=2).processes == 2
    assert layout(replicas=3, nproc_per_node=2).processes == 6


def test_a_node_has_one_replica_and_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_NODES", "3")
    monkeypatch.setenv("MLOC_FIRST_NODE", "mloc-x-0.mloc-y:20001")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    found = layout(("0", "1"), replicas=3)
    assert found.node == Node(3, 2, "mloc-x-0.mloc-y", 20001) and not found.node.on_loopback
    assert (found.processes, found.ranks, found.devices_of(0)) == (2, range(4, 6), ("0", "1"))
    assert layout(replicas=3).needs_torchrun and layout(replicas=3).ranks == range(2, 3)
    monkeypatch.setenv("MLOC_NODE_RANK", "3")
    with pytest.raises(ValueError, match="does not say which node this is: MLOC_NODES='3', MLOC_NODE_RANK='3'"):
        layout(replicas=3)


def test_every_granted_device_gets_a_process() -> None:
    assert layout(FOUR) == Layout(1, 4, FOUR)
    assert layout(FOUR, nproc_per_node=2) == Layout(1, 2, ("2", "3"))
    two = layout(FOUR, replicas=2)
    assert (two.per_node, two.devices_of(0), two.devices_of(1)) == (2, ("2", "3"), ("6", "7"))


def test_each_replica_keeps_its_own_share_when_it_uses_less_of_it() -> None:
    two = layout(FOUR, replicas=2, nproc_per_node=1)
    assert (two.devices_of(0), two.devices_of(1)) == (("2",), ("6",))


def test_visible_devices_and_primary_gpu_count_the_granted_ones() -> None:
    assert layout(FOUR, visible_devices="0,2").devices == ("2", "6")
    assert layout(FOUR, visible_devices=[1, 3], primary_gpu=3).devices == ("7", "3")
    assert layout(FOUR, allow_multi_gpu=False, primary_gpu=2).devices == ("6",)


@pytest.mark.parametrize(
    ("training", "devices", "warning"),
    [
        ({"nproc_per_node": 8}, FOUR, "nproc_per_node 8: 4 devices"),
        ({"visible_devices": [0, 9]}, FOUR, "visible_devices [0, 9]: only 4"),
        ({"primary_gpu": 9}, FOUR, "primary_gpu 9"),
        ({"allow_multi_gpu": False}, FOUR, "allow_multi_gpu is false"),
        ({"primary_gpu": 1}, (), "primary_gpu counts only on a GPU"),
    ],
)
def test_what_cannot_be_done_is_told(training: dict[str, Any], devices: tuple[str, ...], warning: str) -> None:
    assert any(warning in told for told in layout(devices, **training).warnings)


def test_sharded_weights_need_a_group_even_alone() -> None:
    assert layout(("0",), fsdp="full_shard").needs_torchrun
    assert layout(("0",), auto_deepspeed=True).needs_torchrun
    assert not layout(("0",)).needs_torchrun
    assert not layout(fsdp="full_shard").needs_torchrun  # on a CPU it counts for nothing, with a warning


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ExecutorError, match=r"shared evenly by .* 3"):
        layout(FOUR, replicas=3)
    with pytest.raises(ExecutorError, match="visible_devices is 'all'"):
        layout(FOUR, visible_devices="all")
