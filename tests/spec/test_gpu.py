"""GPU names."""

from __future__ import annotations

import pytest

from mloc_dagster.spec.gpu import memory_gib, normalise, same_device


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("any", "any"),
        ("auto", "any"),
        ("*", "any"),
        ("nvidia-a100-80gb", "a100-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("A100-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("A100 (80GB)", "a100-80gb"),
        ("a100", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("nvidia-h100", "h100"),
        ("NVIDIA H200", "h200"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("rtx_4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("nvidia", "nvidia"),
    ],
)
def test_spellings(name: str, canonical: str) -> None:
    assert normalise(name) == canonical
    assert normalise(canonical) == canonical


@pytest.mark.parametrize(
    ("wanted", "offered", "fits"),
    [
        ("any", "NVIDIA H200", True),
        ("a100", "NVIDIA A100-SXM4-80GB", True),
        ("a100-80gb", "NVIDIA A100-PCIE-40GB", False),
        ("a10", "a100-80gb", False),
        ("nvidia-h100-80gb", "NVIDIA H100 80GB HBM3", True),
    ],
)
def test_same_device(wanted: str, offered: str, fits: bool) -> None:
    assert same_device(wanted, offered) is fits


@pytest.mark.parametrize(("name", "size"), [("a100-80gb", 80), ("T4", 16), ("NVIDIA H200", 141), ("a100", None)])
def test_memory(name: str, size: int | None) -> None:
    assert memory_gib(name) == size
