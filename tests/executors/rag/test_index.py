"""An index on disk: checked when it is opened, whole while it is written and after a kill at any step of that."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy
import pytest

from executors.base import ExecutorError
from executors.rag.chunking import Chunk
from executors.rag.index import Meta, open_index, write_index
from tests.executors.conftest import result_of, start_host
from tests.executors.rag.conftest import Stages

pytest.importorskip("faiss")


def write(folder: Path, version: str, count: int) -> None:
    """Write an index of `count` passages that all name the version."""
    chunks = [Chunk(id=f"{version}#{at}", document=version, text=f"{version} {at}", start=0) for at in range(count)]
    vectors = numpy.eye(count, 8, dtype="float32")
    write_index(folder, meta(count), chunks, vectors)


def meta(count: int) -> Meta:
    return Meta(
        store="faiss", collection="chunks", embedding_model="m", embedding_digest="d", dimension=8, documents=1,
        chunks=count, chunk_size=9, chunk_overlap=0,
    )  # fmt: skip


def versions(folder: Path, scratch: Path) -> set[str]:
    """The versions that the passages of an index name; more than one would be a mixture."""
    with open_index(folder, scratch, embedding_digest="d", collection="chunks") as index:
        assert len(index.chunks) == index.store.count
        return {chunk.document for chunk in index.chunks}


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from mloc_dagster.files import atomic
from tests.executors.rag.test_index import write

function, when, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
module, name, first = {
    "move_old": (os, "rename", folder),
    "place_new": (os, "replace", folder.with_name(".index.partial")),
    "remove_old": (atomic.shutil, "rmtree", folder.with_name(".index.replaced")),
}[function]
real = getattr(module, name)

def killing(source, *args, **kwargs):
    if Path(source) != first or (function == "remove_old" and not first.exists()):
        return real(source, *args, **kwargs)
    if when == "after":
        real(source, *args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, name, killing)
write(folder, "new", 7)
"""


@pytest.mark.parametrize(
    ("function", "when", "left"),
    [
        ("move_old", "before", "old"),
        ("move_old", "after", "old"),
        ("place_new", "before", "old"),
        ("place_new", "after", "new"),
        ("remove_old", "before", "new"),
        ("remove_old", "after", "new"),
    ],
)
def test_a_kill_while_the_new_index_takes_its_place(function: str, when: str, left: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    write(folder, "old", 5)
    command = [sys.executable, "-c", KILLED, function, when, str(folder)]
    ended = subprocess.run(command, timeout=120, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert versions(folder, tmp_path / "scratch") == {left}
    write(folder, "newer", 3)
    assert versions(folder, tmp_path / "scratch") == {"newer"}
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_failed_write_after_a_kill_between_the_renames_keeps_the_old_index(tmp_path: Path) -> None:
    write(tmp_path / "index", "old", 5)
    (tmp_path / "index").rename(tmp_path / ".index.replaced")
    with pytest.raises(RuntimeError, match="faiss holds 4 vectors"):
        write_index(tmp_path / "index", meta(5), [], numpy.eye(4, 8, dtype="float32"))
    assert versions(tmp_path / "index", tmp_path / "scratch") == {"old"}


def test_readers_see_the_old_or_the_new_index_while_it_is_written(tmp_path: Path) -> None:
    folder, done, seen, faults = tmp_path / "index", threading.Event(), [], []
    write(folder, "v0", 1)

    def read(number: int) -> None:
        while not done.is_set():
            try:
                seen.append(versions(folder, tmp_path / f"scratch{number}"))
            except Exception as error:
                faults.append(error)
                return

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 40):
        write(folder, f"v{number}", 1 + number % 7)
    done.set()
    for reader in readers:
        reader.join(30)
    assert not faults and all(len(names) == 1 for names in seen)
    assert len({name for names in seen for name in names}) > 2


def test_two_stages_search_one_index_at_once(stages: Stages) -> None:
    index = stages.indexed()["index_path"]
    jobs = [stages.search_job(index, {}, name) for name in ("one", "two")]
    running = [start_host(job) for job in jobs]
    for job, process in zip(jobs, running, strict=True):
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert result_of(job)["payload"]["metrics"]["mrr"] == 1.0


def test_a_damaged_index_and_another_model_are_refused(stages: Stages, tmp_path: Path) -> None:
    index = stages.indexed()["index_path"]
    chunks = Path(index) / "chunks.jsonl"
    chunks.write_text("".join(chunks.read_text("utf-8").splitlines(keepends=True)[:2]), "utf-8")
    with pytest.raises(ExecutorError, match="damaged: it holds 2 passages and 3 vectors"):
        stages.asked(index, {})
    meta = json.loads((Path(index) / "index.json").read_text("utf-8"))
    (Path(index) / "index.json").write_text(json.dumps(meta | {"embedding_digest": "sha256:other"}), "utf-8")
    with pytest.raises(ExecutorError, match="cannot be compared"):
        stages.asked(index, {})
    with pytest.raises(ExecutorError, match="is not there"):
        stages.asked(str(tmp_path / "nowhere"), {})
