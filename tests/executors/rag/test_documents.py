"""Documents of every kind, from every place, pulled as a stage pulls them."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.job import Job
from executors.rag.documents import Document, Documents, documents_of, text_of_html
from executors.resolution import resolved_context
from executors.secrets import Secrets
from mloc_dagster.sources import Cache, PullError, pull_dataset
from mloc_dagster.spec.retrieval import DocumentSource

Read = Callable[..., Documents]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Pull sources and read them: `read({path: ...}, {identifier: ...})`."""

    def documents(*sources: dict[str, Any]) -> Documents:
        pulls = [DocumentSource.model_validate(source).data() for source in sources]
        paths = tuple(
            pull_dataset(pull, cache=Cache(tmp_path / "home" / "cache")).path if pull else None for pull in pulls
        )
        raw = {"task_type": "rag_indexing", "rag": {"documents": {"source": list(sources)}}}
        job = Job(task_id="t", task_name="n", stage="s", raw=raw, out=tmp_path / "out", document_paths=paths)
        return documents_of(resolved_context(job, Secrets({}), threading.Event()))

    return documents


def only(found: Documents) -> Document:
    [document] = found.documents
    return document


def pdf(*pages: str) -> bytes:
    """A real PDF with one line of text on each page, each object at the offset that its table says."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    body, offsets = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size, end = len(objects) + 1, len(body)
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{end}\n%%EOF\n"
    return body + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()


def test_text_of_files(read: Read, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffGrüße\n".encode())
    assert only(read({"path": str(tmp_path / "a.txt")})) == Document("a.txt", "Grüße\n")
    (tmp_path / "b.MD").write_text("# Head\n", "utf-8")
    assert only(read({"path": str(tmp_path / "b.MD")})) == Document("b.MD", "# Head\n", markdown=True)
    (tmp_path / "c.html").write_text("<title>no</title><p>one<p>two", "utf-8")
    assert only(read({"path": str(tmp_path / "c.html")})).text == "one\ntwo"


def test_pages_of_a_pdf(read: Read, tmp_path: Path) -> None:
    (tmp_path / "tides.pdf").write_bytes(pdf("The moon pulls the sea.", "Twice a day it rises."))
    assert only(read({"path": str(tmp_path / "tides.pdf")})).text == "The moon pulls the sea.\n\nTwice a day it rises."
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(ExecutorError, match=r"bad\.pdf cannot be read as a PDF"):
        read({"path": str(tmp_path / "bad.pdf")})


def test_html_gives_the_text_that_is_shown() -> None:
    assert text_of_html("<script>x()</script><h1>A&amp;B</h1><p>one <b>two</b></p>") == "A&B\n\none two"


def test_rows_of_a_file(read: Read, tmp_path: Path) -> None:
    rows = [{"name": f"d{number}", "body": f"text {number}"} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    source = {"path": str(tmp_path / "rows.jsonl"), "column": "body"}
    found = read({**source, "id_column": "name", "split": "train[1:3]"})
    assert [(one.id, one.text) for one in found.documents] == [("d1", "text 1"), ("d2", "text 2")]
    assert [one.id for one in read(source).documents] == [f"rows.jsonl:{number}" for number in range(4)]
    with pytest.raises(ExecutorError, match=r"'text', but rows\.jsonl has no such column") as caught:
        read({"path": source["path"]})
    assert caught.value.hint == "Columns: name, body."


def test_a_column_of_a_data_set(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "mirror" / "datasets" / "org" / "facts"
    folder.mkdir(parents=True)
    table = pyarrow.table({"fact": ["water is wet", "ice is cold"], "key": ["w", "i"]})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    source = DocumentSource(identifier="org/facts", column="fact", id_column="key")
    data = source.data()
    assert data
    pulled = pull_dataset(data, cache=Cache(tmp_path / "cache"), mirror=f"file://{tmp_path}/mirror")
    raw = {"task_type": "rag_indexing", "rag": {"documents": {"source": source.model_dump(exclude_none=True)}}}
    job = Job(task_id="t", task_name="n", stage="s", raw=raw, out=tmp_path / "out", document_paths=(pulled.path,))
    found = documents_of(resolved_context(job, Secrets({}), threading.Event()))
    assert [(one.id, one.text) for one in found.documents] == [("w", "water is wet"), ("i", "ice is cold")]


def test_a_folder_with_what_is_no_document(read: Read, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    for name in ("a.txt", "deep/er/b.md", ".git/c.txt", "image.png", "empty.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("" if "empty" in name else name, "utf-8")
    found = read({"path": str(folder)})
    assert [one.id for one in found.documents] == ["a.txt", "deep/er/b.md"]
    assert found.warnings == (
        "1 files of docs are no documents: image.png",
        "1 documents are empty and were left out: empty.txt",
    )
    assert [one.id for one in read({"path": str(folder), "glob": "**/*.md"}).documents] == ["deep/er/b.md"]
    with pytest.raises(ExecutorError, match=r"holds no file that matches '\*\.pdf'"):
        read({"path": str(folder), "glob": "*.pdf"})
    with pytest.raises(ExecutorError, match=r"two documents are named 'a\.txt'"):
        read({"path": str(folder)}, {"path": str(folder / "a.txt")})


def test_a_document_of_no_known_kind_is_named(read: Read, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\0")
    with pytest.raises(ExecutorError, match=r"x\.bin is no document"):
        read({"path": str(tmp_path / "x.bin")})


def packed(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    """An archive of these members."""
    if name.endswith(".zip"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return folder / name
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder / name


@pytest.mark.parametrize("name", ["docs.zip", "docs.tar", "docs.tar.gz", "docs.tgz"])
def test_archives_are_unpacked(name: str, read: Read, tmp_path: Path) -> None:
    archive = packed(tmp_path, name, {"docs/a.txt": b"one", "docs/deep/b.md": b"# two", "docs/c.pdf": pdf("three")})
    found = {one.id.removeprefix("docs/"): one.text for one in read({"path": str(archive)}).documents}
    assert found == {"a.txt": "one", "deep/b.md": "# two", "c.pdf": "three"}


@pytest.mark.parametrize("name", ["evil.zip", "evil.tar"])
def test_an_archive_that_would_leave_its_folder_is_refused(name: str, read: Read, tmp_path: Path) -> None:
    archive = packed(tmp_path, name, {"../../evil.txt": b"x"})
    with pytest.raises(ExecutorError, match="outside of its folder"):
        read({"path": str(archive)})
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a server with the files of `<tmp_path>/www`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    (tmp_path / "www").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_files_and_archives_over_http(read: Read, web: str, tmp_path: Path) -> None:
    (tmp_path / "www" / "my notes.md").write_text("# Web\n", "utf-8")
    (tmp_path / "www" / "rows.jsonl").write_text('{"text": "a row"}\n', "utf-8")
    packed(tmp_path / "www", "docs.tar.gz", {"docs/a.txt": b"packed"})
    assert only(read({"url": f"{web}/my%20notes.md?v=2"})) == Document("my notes.md", "# Web\n", markdown=True)
    assert only(read({"url": f"{web}/rows.jsonl"})).text == "a row"
    assert only(read({"path": f"{web}/docs.tar.gz"})).text == "packed"
    with pytest.raises(PullError, match="404"):
        read({"url": f"{web}/none.md"})


def test_folders_files_and_archives_in_a_bucket(read: Read, s3: Any, tmp_path: Path) -> None:
    archive = packed(tmp_path, "docs.zip", {"docs/z.txt": b"zipped"})
    for key, body in {"wiki/a.txt": b"one", "wiki/deep/b.md": b"# two", "docs.zip": archive.read_bytes()}.items():
        s3.put_object(Bucket="models", Key=key, Body=body)
    found = read({"bucket": "models", "path": "wiki"})
    assert {one.id: one.text for one in found.documents} == {"a.txt": "one", "deep/b.md": "# two"}
    assert only(read({"url": "s3://models/wiki/deep/b.md"})) == Document("b.md", "# two", markdown=True)
    assert only(read({"bucket": "models", "path": "wiki/a.txt"})) == Document("a.txt", "one")
    assert only(read({"url": "s3://models/docs.zip"})).text == "zipped"
    with pytest.raises(PullError, match="nothing is at s3://models/none"):
        read({"bucket": "models", "path": "none"})


def test_topics_of_python_and_several_sources(read: Read, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine", "utf-8")
    found = {one.id: one.text for one in read({"type": "python_topics"}, {"path": str(tmp_path / "a.txt")}).documents}
    assert found["a.txt"] == "mine" and "context manager" in found["with"]
