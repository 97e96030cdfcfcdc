"""Passages of documents."""

from __future__ import annotations

from executors.rag.chunking import chunks_of
from executors.rag.documents import Document


def test_passages_say_where_they_start() -> None:
    text = "\n\n".join(f"Paragraph {number} " + "word " * 30 for number in range(8))
    chunks = chunks_of([Document("a.txt", text, metadata={"row": 3})], 300, 40)
    assert len(chunks) > 4 and [chunk.id for chunk in chunks] == [f"a.txt#{number}" for number in range(len(chunks))]
    assert all(len(chunk.text) <= 300 and chunk.metadata == {"row": 3} for chunk in chunks)
    assert all(text[chunk.start : chunk.start + len(chunk.text)] == chunk.text for chunk in chunks)


def test_markdown_is_cut_at_its_headings() -> None:
    text = "# One\n\n" + "alpha " * 20 + "\n\n## Two\n\n" + "beta " * 20
    chunks = chunks_of([Document("a.md", text, markdown=True)], 140, 0)
    assert [chunk.text.split("\n")[0] for chunk in chunks] == ["# One", "## Two"]
