"""Vectors that are kept."""

from __future__ import annotations

from tests.executors.rag.conftest import Stages


def test_only_changed_documents_are_embedded_again(stages: Stages) -> None:
    assert stages.indexed()["embedded"] == 3
    assert stages.indexed("again")["embedded"] == 0
    (stages.notes / "bread.txt").write_text("Bread is baked in an oven.\n", "utf-8")
    assert stages.indexed("changed")["embedded"] == 1
