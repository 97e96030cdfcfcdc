"""Which stages are done already: digest → the run folder that holds the result, while it is intact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mloc_dagster.files.atomic import write_text
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import RESPONSES


class Entry(BaseModel):
    """One finished stage. `artifact_digest` is the SHA-256 hex of its `responses.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    stage: str
    folder: Path
    artifact_digest: str
    finished_at: str


class ReuseIndex:
    """Finished stages by digest."""

    def __init__(self, home: Home) -> None:
        self._folder = home.index / "stages"

    def lookup(self, digest: str) -> Entry | None:
        """Return the entry of a digest when its result and all files of its manifest are intact, else None."""
        try:
            entry = Entry.model_validate_json((self._folder / f"{digest}.json").read_text("utf-8"))
            return entry if _intact(entry) else None
        except (OSError, ValueError, KeyError, TypeError):  # gone, or not written by us
            return None

    def record(self, digest: str, entry: Entry) -> None:
        """Remember a finished stage."""
        write_text(self._folder / f"{digest}.json", entry.model_dump_json(indent=1))


def _intact(entry: Entry) -> bool:
    responses = (entry.folder / RESPONSES).read_bytes()
    if hashlib.sha256(responses).hexdigest() != entry.artifact_digest:
        return False
    manifest = json.loads((entry.folder / "manifest.json").read_text("utf-8"))
    return all(_whole(entry.folder, item) for item in manifest["entries"] if item["status"] == "present")


def _whole(folder: Path, item: dict) -> bool:
    path = folder / item["path"]
    if item["type"] == "folder":
        sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
        return path.is_dir() and (len(sizes), sum(sizes)) == (item["file_count"], item["size"])
    return path.is_file() and path.stat().st_size == item["size"]
