"""`spec.rag`: documents, index and search."""

from __future__ import annotations

from typing import Annotated, Literal

from mloc_dagster.spec.base import Fraction, Json, NotNegative, Positive, Section, also


class VectorStore(Section):
    """Where vectors live."""

    type: Annotated[Literal["chroma", "chromadb", "qdrant", "faiss"], also("vector_db")] = "chroma"
    path: Annotated[str | None, also("index_path")] = None
    metadata_path: str | None = None
    collection: str | None = None
    url: str | None = None
    api_key: str | None = None


class Embedding(Section):
    """The embedding model."""

    model: Annotated[str, also("identifier")]
    batch_size: Positive = 32


class DocumentSource(Section):
    """Documents to index."""

    type: str | None = None
    path: str | None = None
    url: str | None = None
    identifier: str | None = None
    split: str | None = None
    column: str | None = None
    bucket: str | None = None
    glob: str | None = None


class Documents(Section):
    """`rag.documents`."""

    source: DocumentSource | list[DocumentSource]


class Search(Section):
    """How a query is answered from the index."""

    top_k: Annotated[Positive, also("retrieval_k", "k")] = 5
    similarity_threshold: Fraction | None = None
    rerank: bool = False
    rerank_model: str | None = None


class Rag(Section):
    """Retrieval settings; every spelling of the language maps here."""

    vector_store: VectorStore = VectorStore()
    embedding: Embedding | None = None
    documents: Documents | None = None
    chunk_size: Positive = 1000
    chunk_overlap: NotNegative = 200
    search: Annotated[Search, also("parameters")] = Search()
    queries: list[str] | None = None
    options: dict[str, Json] | None = None
