"""Every backend that works on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from executors.sandbox import Ended, Limits, run
from executors.sandbox.backend import VARIABLE
from executors.sandbox.bubblewrap import Bubblewrap
from executors.sandbox.namespaces import Namespaces

BACKENDS = {"bubblewrap": Bubblewrap(), "namespaces": Namespaces()}
Contained = Callable[..., Ended]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty work folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture(params=sorted(BACKENDS))
def contained(request: pytest.FixtureRequest, work: Path, monkeypatch: pytest.MonkeyPatch) -> Contained:
    """Run a command or Python source in `work` with each backend: `contained("print(1)", seconds=2)`."""
    refusal = BACKENDS[request.param].refusal()
    if refusal:
        pytest.skip(f"{request.param} does not work on this machine: {refusal}")
    monkeypatch.setenv(VARIABLE, request.param)

    def go(command: Sequence[str] | str, stdin: str = "", **limits: Any) -> Ended:
        ended = run(command, work=work, limits=Limits(**{"seconds": 8.0} | limits), stdin=stdin)
        assert ended.backend == request.param
        return ended

    return go
