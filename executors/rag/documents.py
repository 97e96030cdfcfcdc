"""Documents to index: files, folders, rows of data sets, and the language reference that comes with Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.fetch import Wanted, locate, unpack
from executors.tables import open_table
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.retrieval import DocumentSource

_MARKDOWN = (".md", ".markdown")
_HTML = (".html", ".htm")
_TEXT = (".txt", ".text", ".rst", ".log")
_ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")
_KNOWN = (*_TEXT, *_MARKDOWN, *_HTML, ".pdf")


@dataclass(frozen=True)
class Document:
    """One text, named by its path below the source, its row, or its topic."""

    id: str
    text: str
    markdown: bool = False
    metadata: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Documents:
    """All documents of a stage in order; warnings say what was passed over."""

    documents: tuple[Document, ...]
    warnings: tuple[str, ...] = ()


def documents_of(ctx: TaskContext) -> Documents:
    """Read every source of `rag.documents`.

    Raises ExecutorError when a source cannot be read, when two documents have the same name, or when all are empty.
    """
    named = ctx.spec.rag.documents
    if named is None:
        raise ExecutorError("rag.documents is missing, so there is nothing to index.", "Give rag.documents.source.")
    found: list[Document] = []
    warnings: list[str] = []
    for index, source in enumerate(named.sources()):
        found += _read(ctx, index, source, warnings)
    _check_names(found)
    full = tuple(document for document in found if document.text.strip())
    if not full:
        raise ExecutorError(
            f"rag.documents holds no text: {len(found)} documents were read.", "Check path, glob and column."
        )
    empty = [document.id for document in found if not document.text.strip()]
    if empty:
        warnings.append(f"{len(empty)} documents are empty and were left out: {', '.join(empty[:5])}")
    return Documents(full, tuple(warnings))


def _read(ctx: TaskContext, index: int, source: DocumentSource, warnings: list[str]) -> list[Document]:
    if source.type == "python_topics":
        return _python_topics()
    path = _place(ctx, index, source)
    if path.is_dir() and not source.identifier:
        return _folder(path, source, warnings)
    if source.identifier or path.suffix.lower() in _ROWS:
        return _rows(ctx, path, source)
    return [_file(path, path.name)]


def _place(ctx: TaskContext, index: int, source: DocumentSource) -> Path:
    """The file or folder of a source: as it was pulled, or as an earlier stage names it."""
    pulled = ctx.document_paths[index] if index < len(ctx.document_paths) else None
    if pulled is None:
        wanted = Wanted(f"rag.documents.source[{index}]", (), path=source.path, url=source.url)
        pulled = locate(wanted, results=None, downloads=ctx.out / ".cache" / "downloads")
    if pulled.is_file() and pulled.suffix.lower() in _ARCHIVES:
        return unpack(pulled, ctx.out / ".cache")
    if not pulled.exists():
        raise ExecutorError(f"rag.documents.source[{index}]: {pulled} is not there.", "Check the path.")
    return pulled


def _folder(folder: Path, source: DocumentSource, warnings: list[str]) -> list[Document]:
    files = sorted(path for path in folder.glob(source.glob) if path.is_file() and not _is_hidden(path, folder))
    if not files:
        raise ExecutorError(f"{folder} holds no file that matches {source.glob!r}.", "Check path and glob.")
    known = [path for path in files if path.suffix.lower() in _KNOWN]
    others = [str(path.relative_to(folder)) for path in files if path not in set(known)]
    if not known:
        raise ExecutorError(
            f"{folder} holds {len(files)} files, but no documents: {', '.join(others[:5])}.",
            f"Known: {', '.join(_KNOWN)}; name a file of rows ({', '.join(_ROWS)}) itself.",
        )
    if others:
        warnings.append(f"{len(others)} files of {folder.name} are no documents: {', '.join(others[:5])}")
    return [_file(path, path.relative_to(folder).as_posix()) for path in known]


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _file(path: Path, name: str) -> Document:
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        return Document(name, _pdf(path, name))
    if suffix not in _KNOWN:
        known = ", ".join((*_KNOWN, *_ROWS))
        raise ExecutorError(f"{name} is no document ({suffix or 'no suffix'}).", f"Known: {known}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExecutorError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}.", "Convert it.") from None
    if suffix in _HTML:
        return Document(name, text_of_html(text))
    return Document(name, text, suffix in _MARKDOWN)


def _pdf(path: Path, name: str) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise ExecutorError(f"{name} is a PDF, and pypdf is not installed.", "Run: pip install pypdf") from None
    try:
        return "\n\n".join(page.extract_text() for page in PdfReader(path).pages)
    except PyPdfError as error:
        raise ExecutorError(f"{name} cannot be read as a PDF: {error}.", "Check the file, or exclude it.") from error


def _rows(ctx: TaskContext, path: Path, source: DocumentSource) -> list[Document]:
    table = open_table(path, split=source.split, cache=ctx.out / ".cache" / "datasets")
    column = table.column_of("rag.documents.source.column", source.column)
    name = table.column_of("rag.documents.source.id_column", source.id_column) if source.id_column else None
    return [_row(row, index, column, name, path.name) for index, row in enumerate(table.rows)]


def _row(row: Mapping[str, Json], index: int, column: str, name: str | None, origin: str) -> Document:
    text = row.get(column)
    if text is not None and not isinstance(text, str):
        raise ExecutorError(f"{origin} row {index}: {column!r} is {text!r:.60}, not text.", "Name a column of texts.")
    return Document(str(row.get(name)) if name else f"{origin}:{index}", text or "", metadata={"row": index})


def _python_topics() -> list[Document]:
    """The topics of `help()`: sections of the language reference of the Python that runs this."""
    from pydoc_data.topics import topics

    return [Document(name, text) for name, text in sorted(topics.items())]


def _check_names(documents: Sequence[Document]) -> None:
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise ExecutorError(
                f"rag.documents: two documents are named {document.id!r}.",
                "Name their common folder as one source, or another id_column.",
            )
        seen.add(document.id)


def text_of_html(text: str) -> str:
    """The text that a page shows, one block a line."""
    reader = _Page()
    reader.feed(text)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).split("\n"))
    return "\n".join(_without_runs(lines)).strip()


def _without_runs(lines: Iterator[str]) -> Iterator[str]:
    """At most one empty line in a row."""
    before = ""
    for line in lines:
        if line or before:
            yield line
        before = line


class _Page(HTMLParser):
    _HIDDEN = frozenset({"script", "style", "noscript", "template", "title"})
    _BLOCKS = frozenset(
        ("p", "div", "br", "hr", "li", "ul", "ol", "dt", "dd", "tr", "table", "pre", "blockquote", "section", "article",
         "header", "footer", "h1", "h2", "h3", "h4", "h5", "h6")
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in self._HIDDEN
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._HIDDEN and self._hidden:
            self._hidden -= 1
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)
