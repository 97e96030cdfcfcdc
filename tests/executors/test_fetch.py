"""Alternatives and archives."""

from __future__ import annotations

import io
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
from executors.fetch import Wanted, locate, unpack


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_url_is_used_when_path_is_absent(tmp_path: Path, server: str) -> None:
    (tmp_path / "www" / "a.jsonl").write_text("{}\n")
    found = locate(Wanted("k", ("*",), path="/nope", url=f"{server}/a.jsonl"), results=None, downloads=tmp_path / "d")
    assert found.read_text() == "{}\n"


def test_all_alternatives_are_named_when_none_works(tmp_path: Path, server: str) -> None:
    wanted = Wanted("checkpoint.load", ("final_lora",), path="/nope", task_id="t", url=f"{server}/b")
    with pytest.raises(ExecutorError) as error:
        locate(wanted, results=tmp_path, downloads=tmp_path / "d")
    for part in ("checkpoint.load", "path '/nope'", "taskId 't'", "404"):
        assert part in error.value.what


def test_task_id_cannot_leave_the_results(tmp_path: Path) -> None:
    (tmp_path / "secret" / "final_lora").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    with pytest.raises(ExecutorError):
        locate(Wanted("k", ("final_lora",), task_id="../secret"), results=tmp_path / "results", downloads=tmp_path)


def test_archives_are_unpacked_to_the_folder_with_the_mark(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with tarfile.open(tmp_path / "lora.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "lora", arcname="lora")
    with zipfile.ZipFile(tmp_path / "lora.zip", "w") as zipped:
        zipped.write(tmp_path / "lora" / "adapter_config.json", "lora/adapter_config.json")
    for name in ("lora.tar.gz", "lora.zip"):
        folder = unpack(tmp_path / name, tmp_path / "into", marks=("adapter_config.json",))
        assert (folder / "adapter_config.json").exists()
    with pytest.raises(ExecutorError, match=r"holds none of config\.json"):
        unpack(tmp_path / "lora.zip", tmp_path / "into", marks=("config.json",))


def test_archive_that_would_leave_its_folder_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo("../evil")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as zipped:
        zipped.writestr("../evil", "x")
    for name in ("bad.tar", "bad.zip"):
        with pytest.raises(ExecutorError, match="outside of its folder"):
            unpack(tmp_path / name, tmp_path / "into")
    assert not list(tmp_path.rglob("evil"))


def test_damaged_archive_is_refused_whole(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 4000)
    with tarfile.open(tmp_path / "lora.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "lora", arcname="lora")
    whole = bytearray((tmp_path / "lora.tar.gz").read_bytes())
    whole[-8] ^= 1  # the checksum at the end
    (tmp_path / "lora.tar.gz").write_bytes(whole)
    with pytest.raises(ExecutorError, match=r"lora\.tar\.gz cannot be unpacked"):
        unpack(tmp_path / "lora.tar.gz", tmp_path / "into")
    assert not list((tmp_path / "into").glob("*unpacked/*"))


def test_addresses_that_end_alike_are_not_mixed_up(tmp_path: Path, server: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "lora").mkdir(parents=True)
        (tmp_path / name / "lora" / "adapter_config.json").write_text(name)
        (tmp_path / "www" / name).mkdir()
        with tarfile.open(tmp_path / "www" / name / "lora.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / name / "lora", arcname="lora")
    for name in ("a", "b"):
        wanted = Wanted("k", ("*",), url=f"{server}/{name}/lora.tar.gz")
        archive = locate(wanted, results=None, downloads=tmp_path / "d")
        folder = unpack(archive, tmp_path / "into", marks=("adapter_config.json",))
        assert (folder / "adapter_config.json").read_text() == name


def test_checkpoints_in_buckets(tmp_path: Path, s3: Any) -> None:
    for name in ("config.json", "nested/notes.txt"):
        s3.put_object(Bucket="models", Key=f"runs/7/{name}", Body=b"{}")
    s3.put_object(Bucket="models", Key="one.jsonl", Body=b"row")
    folder = locate(Wanted("k", ("*",), path="s3://models/runs/7"), results=None, downloads=tmp_path)
    assert (folder / "config.json").read_text() == (folder / "nested" / "notes.txt").read_text() == "{}"
    file = locate(Wanted("k", ("*",), url="s3://models/one.jsonl"), results=None, downloads=tmp_path)
    assert (file.name, file.read_text()) == ("one.jsonl", "row")
    with pytest.raises(ExecutorError, match="'s3://models/none' is not there"):
        locate(Wanted("k", ("*",), path="s3://models/none"), results=None, downloads=tmp_path)
    with pytest.raises(ExecutorError, match="'s3://other/x' cannot be read"):
        locate(Wanted("k", ("*",), url="s3://other/x"), results=None, downloads=tmp_path)
