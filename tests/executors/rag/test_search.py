"""Ranks that are put together."""

from __future__ import annotations

import pytest

from executors.rag.search import fused, words_of


def test_fusion_by_hand() -> None:
    assert fused({5: 0.9, 6: 0.8}, {6: 3.0}) == pytest.approx({5: 1 / 61, 6: 1 / 62 + 1 / 61})


def test_words_are_compared_in_lower_case() -> None:
    assert words_of("Über-Größe, v2!") == ["über", "größe", "v2"]
