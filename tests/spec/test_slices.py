"""The slice grammar of splits."""

from __future__ import annotations

import pytest

from mloc_dagster.spec.slices import SliceError, parse_slice


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("train", range(1000)),
        ("train[:200]", range(200)),
        ("train[60:100]", range(60, 100)),
        ("train[:1%]", range(10)),
        ("train[10%:20%]", range(100, 200)),
        ("validation[-50:]", range(950, 1000)),
        ("train[-10%:]", range(900, 1000)),
        ("train[:5000]", range(1000)),
        ("train[:]", range(1000)),
        (" train [ : 3 ] ", range(3)),
    ],
)
def test_rows(text: str, rows: range) -> None:
    assert list(parse_slice(text).rows(1000)) == list(rows)


def test_the_name_can_be_changed() -> None:
    assert str(parse_slice("train[:512]").renamed("train_prefs")) == "train_prefs[:512]"
    assert str(parse_slice("train").renamed("test")) == "test"


@pytest.mark.parametrize("text", ["", "train[", "train[5]", "train[:10", "train[a:b]", "[:5]", "train[:150%]", "a b"])
def test_refused(text: str) -> None:
    with pytest.raises(SliceError):
        parse_slice(text)
