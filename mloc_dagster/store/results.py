"""Results of stages: the envelope in `responses.json`, and how a finished one is found again."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec.base import Json
from mloc_dagster.store.home import Home

RESPONSES = "responses.json"


class Envelope(BaseModel):
    """What every stage publishes."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    task_id: str
    stage: str
    worker: str
    metadata: dict[str, Json]
    received_at: str
    result: dict[str, Json]


def write_envelope(folder: Path, envelope: Envelope) -> None:
    """Write `responses.json` into a run folder."""
    write_text(folder / RESPONSES, envelope.model_dump_json(indent=1) + "\n")


def read_envelope(path: Path) -> Envelope:
    """Read a `responses.json`; raises OSError or ValueError."""
    return Envelope.model_validate_json(path.read_text("utf-8"))


def note_task(home: Home, task_name: str, task_id: str) -> None:
    """Remember that a task of this name has this id, so that its results are found by name."""
    folder = home.index / "tasks" / task_name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / task_id).touch()


def find_result(home: Home, reference: str, stage: str | None = None) -> Path | None:
    """Return the run folder of a finished stage, or None.

    `reference` is a task id, `<task id>/<stage>`, or a task's name (its latest finished result). Without a stage, the
    stage that finished last is meant. What is no plain name finds nothing: nothing outside of the results is read.
    """
    task, _, inner = reference.partition("/")
    wanted = stage or inner or None
    if not _plain(task) or not (wanted is None or _plain(wanted)):
        return None
    runs = [home.results / entry.name for entry in (home.index / "tasks" / task).glob("*")]
    stages = [folder for run in (*runs, home.results / task) for folder in _stages(run, wanted)]
    found = [folder for folder in stages if (folder / RESPONSES).is_file()]
    return max(found, key=lambda folder: (folder / RESPONSES).stat().st_mtime_ns, default=None)


def _stages(run: Path, wanted: str | None) -> list[Path]:
    """The folders of a run that are visible: a hidden one is being replaced."""
    if wanted is not None:
        return [run / wanted]
    return [folder for folder in run.glob("*") if not folder.name.startswith(".")]


def _plain(name: str) -> bool:
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)
