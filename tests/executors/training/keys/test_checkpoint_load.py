"""`checkpoint.load`: which weights each of its keys leads to."""

from __future__ import annotations

import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.host import execute
from executors.weights import Start, starting_weights
from tests.executors.context_of import context_of
from tests.executors.training.keys.capture import caught, job_of
from tests.executors.training.keys.files import loaded, with_keys
from tests.executors.training.keys.table import TRAINERS

FORMATS = {"zip": "", "tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


class Server(ThreadingHTTPServer):
    """Serves a folder; `/held/…` is answered when the test is over, `/locked/…` only to those with the key."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.over = threading.Event()
        self.folder = folder

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        kind, _, name = self.path.removeprefix("/").partition("/")
        if kind == "held":
            self.server.over.wait(30)
        if kind == "locked" and self.headers.get("X-Key") != "open":
            return self.send_error(403)
        self.path = f"/{name}" if kind in ("held", "locked") else self.path
        return super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with Server(tmp_path / "www") as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http
        http.over.set()
        http.shutdown()


def model(folder: Path, name: str) -> Path:
    """A folder that counts as a model; `name` tells it from others."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(name)
    return folder


def packed(folder: Path, archive: Path, form: str) -> Path:
    if form == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in folder.rglob("*"):
                zipped.write(path, Path(folder.name) / path.relative_to(folder))
    else:
        with tarfile.open(str(archive), FORMATS[form]) as tar:  # type: ignore[call-overload]
            tar.add(folder, folder.name)
    return archive


def start(tmp_path: Path, **load: Any) -> Start:
    """What a file with this `checkpoint.load` starts from."""
    keys = {f"checkpoint.load.{key}": value for key, value in load.items()}
    raw = loaded(with_keys(TRAINERS[0], keys)).stages[0].raw
    return starting_weights(context_of(tmp_path / "out", raw, results=tmp_path / "results"))


def named(found: Start) -> str:
    return (found.model / "config.json").read_text()


@pytest.mark.parametrize("trainer", TRAINERS)
def test_each_trainer_starts_from_it(
    trainer: str, blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is what `checkpoint.load.path` names, not `model.source`."""
    other = shutil.copytree(blank, tmp_path / "other")
    file = loaded(with_keys(trainer, {"checkpoint.load.path": str(other)}))
    found = caught(job_of(file, tmp_path / "out", blank), monkeypatch)
    assert found.model.config.name_or_path == str(other)


def test_every_spelling_is_read(tmp_path: Path, server: Server) -> None:
    local = str(model(tmp_path / "local", "local"))
    model(tmp_path / "results" / "earlier" / "train" / "final_model", "task")
    packed(model(tmp_path / "m", "web"), tmp_path / "www" / "m.tar.gz", "tar.gz")
    for key in ("path", "uri", "worker_path"):
        assert named(start(tmp_path, **{key: local})) == "local"
    for key in ("task_id", "taskId"):
        assert named(start(tmp_path, **{key: "earlier"})) == "task"
    for key in ("url", "download_url", "uri"):
        assert named(start(tmp_path, **{key: server.address("m.tar.gz")})) == "web"


def test_the_type_says_which_alternative_goes_first(tmp_path: Path, server: Server) -> None:
    """Without it path, taskId, url; what is left goes on being tried in that order."""
    given = {"path": str(model(tmp_path / "local", "local")), "taskId": "earlier", "url": server.address("m.zip")}
    model(tmp_path / "results" / "earlier" / "final_model", "task")
    packed(model(tmp_path / "m", "http"), tmp_path / "www" / "m.zip", "zip")
    assert named(start(tmp_path, **given)) == "local"
    for kind in ("local", "task", "http"):
        assert named(start(tmp_path, type=kind, **given)) == kind
    assert named(start(tmp_path, type="http", **given | {"url": server.address("none.zip")})) == "local"


def test_a_type_of_nothing_that_is_given_is_told(tmp_path: Path) -> None:
    path = str(model(tmp_path / "local", "local"))
    assert start(tmp_path, type="local", path=path).warnings == ()
    end = "is not used: what is given is of type local"
    assert start(tmp_path, type="s3", path=path).warnings == (f"checkpoint.load.type s3 {end}",)
    of_downloads = {"headers": {"a": "b"}, "timeoutSec": 9}
    assert start(tmp_path, path=path, **of_downloads).warnings == (
        f"checkpoint.load.headers {end}", f"checkpoint.load.timeout_sec {end}",
    )  # fmt: skip
    assert start(tmp_path, path=path, url="http://127.0.0.1:1/x", **of_downloads).warnings == ()


@pytest.mark.parametrize("task_type", ["sft", "inference"])
def test_what_is_told_of_a_checkpoint_is_in_the_result(task_type: str, blank: Path, tmp_path: Path) -> None:
    keys = {"checkpoint.load.path": str(blank), "checkpoint.load.type": "s3"}
    spec = with_keys("sft", keys | {"training.max_steps": 1, "training.save_model": False})
    if task_type == "inference":
        spec = spec | {"taskType": task_type, "data": {"items": ["a"]}, "inference": {"max_tokens": 2}}
    told = execute(job_of(loaded(spec), tmp_path / "out", blank)).metadata["warnings"]
    assert "checkpoint.load.type s3 is not used: what is given is of type local" in told


def test_the_filename_names_a_download(tmp_path: Path, server: Server) -> None:
    """The address says nothing of the format here, the name of the file does."""
    packed(model(tmp_path / "m", "web"), tmp_path / "www" / "fetch.tar", "zip")
    found = start(tmp_path, url=server.address("fetch.tar?id=3"), filename="weights.zip")
    assert named(found) == "web" and list((tmp_path / "out").rglob("weights.zip"))
    with pytest.raises(ExecutorError, match="cannot be unpacked"):
        start(tmp_path, url=server.address("fetch.tar"))


def test_the_filename_picks_a_file(tmp_path: Path) -> None:
    """An archive in a folder, one that a task left, a folder in a folder, or a file that must be there."""
    for name in ("a", "b"):
        packed(model(tmp_path / name, name), tmp_path / f"{name}.tgz", "tgz")
    assert named(start(tmp_path, path=str(tmp_path), filename="b.tgz")) == "b"
    assert named(start(tmp_path, path=str(tmp_path), filename="a")) == "a"
    assert named(start(tmp_path, path=str(tmp_path / "a"), filename="config.json")) == "a"
    model(tmp_path / "results" / "earlier" / "train" / "final_model", "task")
    artifacts = tmp_path / "results" / "earlier" / "train" / "artifacts"
    artifacts.mkdir()
    shutil.copy(tmp_path / "a.tgz", artifacts)
    assert named(start(tmp_path, taskId="earlier")) == "task"
    assert named(start(tmp_path, taskId="earlier", filename="a.tgz")) == "a"
    with pytest.raises(ExecutorError, match=r"has no 'c\.tgz'"):
        start(tmp_path, path=str(tmp_path), filename="c.tgz")


def test_headers_are_sent(tmp_path: Path, server: Server) -> None:
    packed(model(tmp_path / "m", "web"), tmp_path / "www" / "m.zip", "zip")
    assert named(start(tmp_path, url=server.address("locked/m.zip"), headers={"X-Key": "open"})) == "web"
    with pytest.raises(ExecutorError, match="403"):
        start(tmp_path, url=server.address("locked/m.zip?"))


def test_a_slow_server_is_given_up(tmp_path: Path, server: Server) -> None:
    """timeout_sec; the server would answer when the test is over."""
    with pytest.raises(ExecutorError, match="timed out"):
        start(tmp_path, url=server.address("held/m.zip"), timeoutSec=0.3)


@pytest.mark.parametrize("form", FORMATS)
def test_the_format_goes_before_the_name(tmp_path: Path, form: str) -> None:
    """archive_format, where the name of the file is wrong."""
    wrong = "tar" if form == "zip" else "zip"
    archive = packed(model(tmp_path / "m", form), tmp_path / f"m.{wrong}", form)
    assert named(start(tmp_path, path=str(archive), archive_format=form)) == form
    with pytest.raises(ExecutorError, match="archive_format is none"):
        start(tmp_path / "none", path=str(archive), archive_format="none")
    for other in ("auto", wrong):
        with pytest.raises(ExecutorError, match="cannot be unpacked"):
            start(tmp_path / other, path=str(archive), archive_format=other)


def test_the_subdir_is_taken(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model(tmp_path / "m" / name, name)
    archive = packed(tmp_path / "m", tmp_path / "m.zip", "zip")
    for source in (tmp_path / "m", archive):
        inside = "b" if source.is_dir() else "m/b"
        assert named(start(tmp_path, path=str(source), subdir=inside)) == "b"
        with pytest.raises(ExecutorError, match="has no 'c'"):
            start(tmp_path, path=str(source), subdir="c")
