"""`spec.rag`: documents, index and search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec.base import Fraction, Json, NotNegative, Positive, Section, also
from mloc_dagster.spec.data import Data, RowSource
from mloc_dagster.spec.model import ModelSource


class VectorStore(Section):
    """Where vectors live."""

    type: Annotated[Literal["chroma", "chromadb", "qdrant", "faiss"], also("vector_db")] = "chroma"
    """What keeps them."""
    path: Annotated[str | None, also("index_path")] = None
    """The folder of an index: that of an earlier stage, or, with documents, a name inside the run folder."""
    metadata_path: str | None = None
    """A file that some stores keep beside the vectors."""
    collection: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,510}[A-Za-z0-9]$")] = "chunks"
    """Name of the collection in the index; on a server, of the alias that leads to the newest one."""
    url: str | None = None
    """Address of a Qdrant server, such as `http://host:6333`; without it, the vectors are files of the index."""
    api_key: str | None = None
    """Key of the server; write `${NAME}` of a secret."""


class TextModel(Section):
    """A model that reads texts."""

    model: Annotated[str, also("identifier")]
    """The model's name, a folder, or an address."""
    type: Literal["huggingface", "local", "s3", "git", "http", "package"] | None = None
    """Where the model is; told by its name when it is not given."""
    revision: str | None = None
    """Branch, tag or commit of the model."""
    batch_size: Positive = 32
    """Texts, or pairs of texts, that it reads at once."""

    def source(self) -> ModelSource:
        """The model that is pulled."""
        kind = self.type or ("local" if self.model.startswith(("/", ".", "~", "file://")) else "huggingface")
        return ModelSource(type=kind, identifier=self.model, revision=self.revision)


class Embedding(TextModel):
    """The embedding model."""


class Reranker(TextModel):
    """A cross-encoder, which reads a query together with a passage and gives one score."""


class DocumentSource(Section):
    """Documents to index."""

    type: Literal["local", "huggingface", "s3", "http", "python_topics"] | None = None
    """Where they are; told by the other keys when it is not given."""
    path: str | None = None
    """A file or a folder, or the path in a bucket."""
    url: str | None = None
    """The address of a file, an archive or a folder in a bucket."""
    identifier: str | None = None
    """Hub id of a data set whose rows are documents."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    split: str = "train"
    """Split of a data set or of a file of rows, with a slice."""
    column: str = "text"
    """Column of a data set or of a file of rows that holds the text."""
    id_column: str | None = None
    """Column that names a document; without it, the number of the row does."""
    bucket: str | None = None
    """Name of an S3 bucket."""
    glob: str = "**/*"
    """Files of a folder that are read."""

    def data(self) -> Data | None:
        """What is pulled; None for documents that come with Python, or when nothing is named."""
        if self.bucket:
            return Data(source=RowSource(type="s3", path=self.path or "", bucket=self.bucket))
        if self.path and "://" not in self.path:
            return Data(source=RowSource(type="local", path=self.path))
        name = self.path or self.url or self.identifier
        return Data(dataset_name=name, revision=self.revision) if name and self.type != "python_topics" else None


class Documents(Section):
    """`rag.documents`."""

    source: DocumentSource | list[DocumentSource]
    """Where the documents are; one source or several."""

    def sources(self) -> list[DocumentSource]:
        """All sources in order."""
        return self.source if isinstance(self.source, list) else [self.source]


class Search(Section):
    """How a query is answered from the index."""

    mode: Literal["hybrid", "dense", "bm25"] = "hybrid"
    """By meaning (dense), by words (bm25), or both ranks fused (hybrid)."""
    top_k: Annotated[Positive, also("retrieval_k", "k")] = 5
    """Passages for each query."""
    similarity_threshold: Fraction | None = None
    """Passages with a lower cosine similarity to the query are left out."""
    rerank: bool = False
    """Order the candidates again: by the cross-encoder where one is named, else by the query's words they hold."""
    rerank_model: Reranker | None = None
    """A cross-encoder that orders the candidates again; its score is the score of a passage."""


class Rag(Section):
    """Retrieval settings; every spelling of the language maps here."""

    vector_store: VectorStore = VectorStore()
    embedding: Embedding | None = None
    """The model that turns texts into vectors."""
    documents: Documents | None = None
    """What is indexed."""
    chunk_size: Positive = 1000
    """Longest passage, in characters."""
    chunk_overlap: NotNegative = 200
    """Characters that a passage shares with the one before it, at most."""
    search: Annotated[Search, also("parameters")] = Search()
    """How a query is answered."""
    queries: list[str] | None = None
    """The queries, when data names none."""
    expected_field: str | None = None
    """Field of a query's metadata that names the right document; gives hit@k and MRR, and the asset check retrieval."""
    min_hit_rate: Fraction | None = None
    """Least share of queries with a right document among their top_k passages; below it the check retrieval fails."""
    min_mrr: Fraction | None = None
    """Least mean reciprocal rank of the first right document; below it the check retrieval fails."""
    max_context_tokens: Positive = 1024
    """Tokens of passages that a prompt holds, at most."""
    options: dict[str, Json] | None = None
