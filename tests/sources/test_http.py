"""Models and data sets from plain files over HTTP."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from mloc_dagster.sources import Cache, PullError, http, peek_dataset, pull_dataset, pull_model
from mloc_dagster.spec.data import Data
from mloc_dagster.spec.model import ModelSource
from tests.sources.hub import Hub

ROOT = Path(__file__).parents[2]
CONTENT = os.urandom(4 << 20)
PULL = """
import sys
from pathlib import Path
from mloc_dagster.sources import Cache, pull_dataset
from mloc_dagster.spec.data import Data
pull_dataset(Data(url=sys.argv[2]), cache=Cache(Path(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_PAUSE_SECONDS", 0.01)


def packed(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return raw.getvalue()


def model(url: str) -> ModelSource:
    return ModelSource(type="http", identifier=url)


def test_a_data_file_is_that_file(hub: Hub, cache: Cache) -> None:
    hub.files["/rows/train set.jsonl"] = b'{"text": "a"}\n'
    data = Data(url=f"{hub.address}/rows/train%20set.jsonl?token=hunter2")
    assert peek_dataset(data, cache=cache) is None
    pulled = pull_dataset(data, cache=cache)
    assert (pulled.path.name, pulled.path.read_bytes()) == ("train set.jsonl", b'{"text": "a"}\n')
    assert "hunter2" not in pulled.origin and "hunter2" not in str(pulled.path)
    again = peek_dataset(data, cache=cache)
    assert again is not None and (again.path, again.digest) == (pulled.path, pulled.digest)


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tgz", "m.tar", "m.tar.bz2", "m.tar.xz", "m.zip"])
def test_an_archive_is_unpacked(hub: Hub, cache: Cache, name: str) -> None:
    files = {"tiny/config.json": b"{}", "tiny/model.safetensors": CONTENT[:9000]}
    mode = {"m.tar": "w", "m.tar.bz2": "w:bz2", "m.tar.xz": "w:xz"}.get(name, "w:gz")
    hub.files[f"/{name}"] = zipped(files) if name == "m.zip" else packed(files, mode)
    pulled = pull_model(model(f"{hub.address}/{name}"), cache=cache)
    assert sorted(path.name for path in pulled.path.iterdir()) == ["config.json", "model.safetensors"]
    assert (pulled.path / "model.safetensors").read_bytes() == CONTENT[:9000]


@pytest.mark.parametrize("name", ["../out", "/tmp/mloc-out", "a/../../out"])
def test_an_archive_that_leads_out_is_refused(hub: Hub, cache: Cache, tmp_path: Path, name: str) -> None:
    for ending, content in (("tgz", packed({name: b"x"})), ("zip", zipped({name: b"x"}))):
        hub.files[f"/m.{ending}"] = content
        with pytest.raises(PullError, match=f"/m.{ending}: "):
            pull_model(model(f"{hub.address}/m.{ending}"), cache=cache)
    assert not list(tmp_path.rglob("out")) and not Path("/tmp/mloc-out").exists()


def test_an_archive_with_a_link_that_leads_out_is_refused(hub: Hub, cache: Cache) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        link = tarfile.TarInfo("config.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    hub.files["/m.tar"] = raw.getvalue()
    with pytest.raises(PullError, match=r"/m\.tar: "):
        pull_model(model(f"{hub.address}/m.tar"), cache=cache)


def test_what_is_no_model_is_refused_and_not_kept(hub: Hub, cache: Cache) -> None:
    hub.files["/page.zip"] = zipped({"index.html": b"x"})
    for _ in range(2):
        with pytest.raises(PullError, match=r"no config\.json; check model\.source\.identifier"):
            pull_model(model(f"{hub.address}/page.zip"), cache=cache)
    assert len(hub.downloads("page.zip")) == 2


def test_a_broken_connection_is_continued(hub: Hub, cache: Cache) -> None:
    hub.files["/rows.parquet"] = CONTENT
    hub.break_after["/rows.parquet"] = [2 << 20, 1 << 20]
    pulled = pull_dataset(Data(url=f"{hub.address}/rows.parquet"), cache=cache)
    assert pulled.path.read_bytes() == CONTENT
    asked = hub.downloads("/rows.parquet")
    assert len(asked) == 3 and asked[0].start == 0 and asked[1].start > 0 and asked[2].start > asked[1].start


def test_a_server_without_ranges_is_asked_for_the_whole_again(hub: Hub, cache: Cache) -> None:
    hub.files["/rows.parquet"] = CONTENT
    hub.break_after["/rows.parquet"] = [2 << 20]
    hub.without_ranges = True
    assert pull_dataset(Data(url=f"{hub.address}/rows.parquet"), cache=cache).path.read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_mixed(hub: Hub, cache: Cache) -> None:
    hub.files["/rows.parquet"] = CONTENT
    hub.break_after["/rows.parquet"] = [3 << 20] * 4
    data = Data(url=f"{hub.address}/rows.parquet")
    hub.without_ranges = True
    with pytest.raises(PullError, match=r"rows\.parquet cannot be downloaded: .*; check the address and the network"):
        pull_dataset(data, cache=cache)
    hub.without_ranges = False
    hub.files["/rows.parquet"] = newer = os.urandom(2 << 20)
    assert pull_dataset(data, cache=cache).path.read_bytes() == newer


def test_a_killed_download_is_continued(hub: Hub, cache: Cache) -> None:
    hub.files["/rows.parquet"] = CONTENT
    hub.pause = 0.02
    url = f"{hub.address}/rows.parquet"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", PULL, str(cache.root), url], env=environment)

    def have() -> int:
        return sum(path.stat().st_size for path in cache.root.rglob(".rows.parquet"))

    deadline = time.monotonic() + 60
    while have() < 1 << 20:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.pause, kept = 0.0, have()
    assert 0 < kept < len(CONTENT) and peek_dataset(Data(url=url), cache=cache) is None

    assert pull_dataset(Data(url=url), cache=cache).path.read_bytes() == CONTENT
    last = hub.downloads("/rows.parquet")[-1]
    assert (last.start, last.sent) == (kept, len(CONTENT) - kept)


def test_a_digest_in_the_address_is_checked(hub: Hub, cache: Cache) -> None:
    hub.files["/rows.csv"] = b"a,b\n"
    right = hashlib.sha256(b"a,b\n").hexdigest()
    assert pull_dataset(Data(url=f"{hub.address}/rows.csv#sha256={right}"), cache=cache).path.name == "rows.csv"
    with pytest.raises(PullError, match="is not the file with sha256 00"):
        pull_dataset(Data(url=f"{hub.address}/rows.csv#sha256={'0' * 64}"), cache=cache)


def test_a_busy_server_is_asked_again_a_missing_file_is_not(hub: Hub, cache: Cache) -> None:
    hub.files["/rows.csv"] = b"a,b\n"
    hub.statuses["/rows.csv"] = [503, 500]
    assert pull_dataset(Data(url=f"{hub.address}/rows.csv"), cache=cache).path.read_bytes() == b"a,b\n"
    with pytest.raises(PullError, match=r"http://127.*/none\.csv cannot be downloaded: the server answered 404"):
        pull_dataset(Data(url=f"{hub.address}/none.csv"), cache=cache)
    assert len([asked for asked in hub.asked if asked.path == "/none.csv"]) == 1


def test_a_secret_in_the_address_is_not_shown(hub: Hub, cache: Cache) -> None:
    url = f"{hub.address.replace('http://', 'http://me:hunter2@')}/none.csv?key=hunter3"
    with pytest.raises(PullError) as error:
        pull_dataset(Data(url=url), cache=cache)
    assert "hunter" not in str(error.value)
