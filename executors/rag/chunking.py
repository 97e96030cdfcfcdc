"""Passages of documents, cut where a text has its own breaks."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from executors.rag.documents import Document
from mloc_dagster.spec.base import Json


class Chunk(BaseModel):
    """A passage; `start` is its first character in the document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    document: str
    text: str
    start: int
    metadata: dict[str, Json] = {}


def chunks_of(documents: Sequence[Document], size: int, overlap: int) -> list[Chunk]:
    """Cut documents into passages of at most `size` characters that share up to `overlap` with the one before."""
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    limits = {"chunk_size": size, "chunk_overlap": overlap, "add_start_index": True}
    plain = RecursiveCharacterTextSplitter(**limits)
    markdown = RecursiveCharacterTextSplitter.from_language(Language.MARKDOWN, **limits)
    chunks: list[Chunk] = []
    for document in documents:
        parts = (markdown if document.markdown else plain).create_documents([document.text])
        chunks += [
            Chunk(
                id=f"{document.id}#{number}",
                document=document.id,
                text=part.page_content,
                start=part.metadata["start_index"],
                metadata=document.metadata,
            )
            for number, part in enumerate(parts)
        ]
    return chunks
