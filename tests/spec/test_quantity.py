"""CPU cores and memory."""

from __future__ import annotations

import pytest

from mloc_dagster.spec.quantity import format_bytes, parse_cpu, parse_memory

GI = 1 << 30


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (16, 16),
        ("16", 16),
        ("64Gi", 64 * GI),
        ("32GiB", 32 * GI),
        ("32GB", 32 * GI),
        ("32 g", 32 * GI),
        ("1.5Gi", 3 * GI // 2),
        ("512Mi", 512 << 20),
        ("512MB", 512 << 20),
        ("512M", 512 << 20),
        ("2Ki", 2048),
        ("1Ti", 1 << 40),
        ("1e3", 1000),
        (0, 0),
    ],
)
def test_memory(value: object, size: int) -> None:
    assert parse_memory(value) == size


@pytest.mark.parametrize(("value", "cores"), [(8, 8.0), ("8", 8.0), ("500m", 0.5), (0.5, 0.5), (" 2 ", 2.0)])
def test_cpu(value: object, cores: float) -> None:
    assert parse_cpu(value) == cores


@pytest.mark.parametrize(
    "value", ["64Qi", "lots", "", "-1", -1, True, None, [], "1 Gi x", "500m", "1e400", "1e300Gi", 10**40, float("nan")]
)
def test_a_bad_amount_of_memory_is_an_error_and_never_zero(value: object) -> None:
    with pytest.raises(ValueError, match="64Gi"):
        parse_memory(value)


@pytest.mark.parametrize("value", ["4Gi", "two", "", -0.5, "1e99", False, float("inf"), {}])
def test_a_bad_number_of_cores(value: object) -> None:
    with pytest.raises(ValueError, match="500m"):
        parse_cpu(value)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (GI, "1.0 GiB"), (5 << 50, "5120.0 TiB")])
def test_bytes_as_text(count: int, text: str) -> None:
    assert format_bytes(count) == text
