"""What is found on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mloc_dagster.placement import inventory
from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.workers import detect

_CARDS = {
    "card1": {"Card Series": "AMD Instinct MI300X OAM", "VRAM Total Memory (B)": "206141652992"},
    "card0": {"Card Series": "AMD Instinct MI250X", "VRAM Total Memory (B)": "68702699520"},
    "system": {"Driver version": "6.7.0"},
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    for cached in (inventory._listed, detect.amd_gpus):
        cached.cache_clear()
    yield
    for cached in (inventory._listed, detect.amd_gpus):
        cached.cache_clear()


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_cores_that_may_be_used_and_all_memory() -> None:
    found = detect.this_machine()
    assert found.cpu == len(os.sched_getaffinity(0)) * 1000 and found.memory == psutil.virtual_memory().total
    assert found.devices == () and found.name == os.uname().nodename


def test_gpus_of_nvidia(tmp_path: Path) -> None:
    install(tmp_path, "nvidia-smi", "echo '0, NVIDIA A100-SXM4-80GB, 81920'")
    assert detect.this_machine().devices == (Device(0, "a100-80gb", 80 << 30),)


def test_gpus_of_amd(tmp_path: Path) -> None:
    install(tmp_path, "rocm-smi", f"echo '{json.dumps(_CARDS)}'")
    assert detect.this_machine().devices == (
        Device(0, "mi250x", 68702699520), Device(1, "mi300x", 206141652992),
    )  # fmt: skip


@pytest.mark.parametrize("script", ["exit 3", "echo nonsense"])
def test_a_tool_that_fails_finds_nothing(script: str, tmp_path: Path) -> None:
    install(tmp_path, "rocm-smi", script)
    assert detect.this_machine().devices == ()
