"""Which weights of a stage were delivered last."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mloc_dagster.files.atomic import write_text
from mloc_dagster.store.evaluations import Weights
from mloc_dagster.store.home import Home


class Publication(BaseModel):
    """One delivery of weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    """`<task>/<stage>` that made the weights."""
    weights: Weights
    result: str
    """`<task id>/<stage>` of the result that was delivered."""
    delivered_to: str
    published_at: str


class Publications:
    """The last publication of each stage."""

    def __init__(self, home: Home) -> None:
        self._folder = home.index / "published"

    def record(self, publication: Publication) -> None:
        """Remember a publication as the last one of its stage."""
        write_text(self._path(publication.stage), publication.model_dump_json(indent=1) + "\n")

    def latest(self, stage: str) -> Publication | None:
        """Return the last publication of `<task>/<stage>`, or None."""
        try:
            return Publication.model_validate_json(self._path(stage).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def _path(self, stage: str) -> Path:
        task, _, name = stage.partition("/")
        return self._folder / task / f"{name}.json"
