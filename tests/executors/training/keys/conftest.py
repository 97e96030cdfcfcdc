"""A model that has learned nothing: keys are looked at, not what is learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_model import make_tiny_llama


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with random weights."""
    return make_tiny_llama(tmp_path_factory.mktemp("blank") / "llama", steps=0)
