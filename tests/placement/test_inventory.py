"""Which device a stage gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.placement import inventory
from mloc_dagster.placement.inventory import Device, Placement, place
from mloc_dagster.spec.resources import Resources

GIB = 1 << 30
MACHINE = (Device(0, "t4", 16 * GIB), Device(1, "a100-80gb", 80 * GIB), Device(2, "a100-40gb", 40 * GIB))


def asking(**gpu: object) -> Resources:
    return Resources.model_validate({"hardware": {"gpu": gpu}} if gpu else {})


@pytest.mark.parametrize(
    ("resources", "devices"),
    [
        (asking(), ("0",)),
        (asking(count=0), ()),
        (asking(count=2), ("0", "1")),
        (asking(type="NVIDIA A100-SXM4-80GB"), ("1",)),
        (asking(type="a100", count=2), ("1", "2")),
        (asking(memory="40Gi"), ("1",)),
        (asking(type="auto", memory="20GiB", count=2), ("1", "2")),
    ],
)
def test_devices_that_fit(resources: Resources, devices: tuple[str, ...]) -> None:
    assert place(resources, False, False, MACHINE) == Placement(devices, on_cpu=not devices)


@pytest.mark.parametrize("resources", [asking(type="h100"), asking(count=4), asking(type="t4", memory="17Gi")])
def test_what_does_not_fit_is_refused_with_the_way_out_or_becomes_a_hint(resources: Resources) -> None:
    refused = place(resources, False, False, MACHINE)
    gpu = resources.hardware.gpu
    assert gpu is not None and not refused.devices
    assert refused.refusal.startswith(f"needs {gpu.count} × {gpu.type} GPU, this machine has t4, a100-80gb, a100-40gb")
    assert "--on cpu" in refused.refusal
    hint = place(resources, False, True, MACHINE)
    assert hint == Placement(note=f"{gpu.count} × {gpu.type} asked for, run on the CPU")


def test_enforce_cpu_takes_no_gpu_and_a_machine_without_one_needs_none() -> None:
    assert place(asking(type="h100"), True, False, MACHINE) == Placement()
    assert place(asking(), False, False, ()) == Placement()
    assert "this machine has none" in place(asking(count=1), False, False, ()).refusal


@pytest.fixture
def _fresh() -> Iterator[None]:
    inventory._listed.cache_clear()
    inventory._failed.clear()
    yield
    inventory._listed.cache_clear()
    inventory._failed.clear()


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (
            "echo '0, NVIDIA A100-SXM4-80GB, 81920'; echo '1, Tesla T4, 15360'",
            (Device(0, "a100-80gb", 80 * GIB), Device(1, "t4", 15 * GIB)),
        ),
        ("echo 'cannot talk to the driver' >&2; exit 9", ()),
        ("exit 0", ()),
    ],
)
def test_gpus_are_read_from_nvidia_smi(
    script: str, found: tuple[Device, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _fresh: None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert inventory.gpus() == found


def test_without_a_driver_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _fresh: None) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert inventory.gpus() == ()
