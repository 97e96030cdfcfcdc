"""A finished run folder in a home of its own, and the places that results are delivered to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.files.archives import make_archive
from mloc_dagster.store.home import Home
from mloc_dagster.store.manifest import write_manifest
from mloc_dagster.store.results import Envelope, write_envelope
from tests.delivery.receiver import Receiver, running_receiver

TASK, STAGE = "0f3c", "tune"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home(tmp_path / "home")


@pytest.fixture
def folder(home: Home) -> Path:
    """The run folder of a training stage: an envelope, weights, their archive, a manifest."""
    return finished(home, "loss 1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server that results can be sent to."""
    with running_receiver() as running:
        yield running


def finished(home: Home, note: str, task: str = TASK, stage: str = STAGE) -> Path:
    """Write the run folder of a stage."""
    folder = home.run_folder(task, stage)
    weights = folder / "final_lora"
    weights.mkdir(parents=True)
    (weights / "adapter_config.json").write_text('{"r": 4}')
    (weights / "adapter_model.safetensors").write_bytes(b"\x07" * 5000)
    (weights / "README.md").write_text(CARD)
    make_archive(weights, folder / "artifacts")
    result = {"ok": True, "note": note, "metrics": {"train_loss": float("nan")}}
    envelope = Envelope(
        task_id=f"{task}/{stage}", stage=stage, worker="w", metadata={}, received_at="2026-01-01", result=result
    )
    write_envelope(folder, envelope)
    write_manifest(folder, envelope.task_id, [])
    return folder


CARD = """\
---
base_model: /home/ann/models/tiny
library_name: peft
tags:
- base_model:adapter:/home/ann/models/tiny
- lora
---

# An adapter
"""


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
