"""Models and data sets from buckets: fsspec's in-memory files, and the real s3fs against a loopback server."""

from __future__ import annotations

import os
import sys
from typing import IO

import fsspec
import pytest
from fsspec.registry import _registry

from mloc_dagster.sources import Cache, PullError, peek_dataset, pull_dataset, pull_model
from mloc_dagster.spec.data import Data, RowSource
from mloc_dagster.spec.model import ModelSource
from tests.sources.hub import Hub


def test_a_file_in_a_bucket_is_continued(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.store.clear()
    content = bytes(range(256)) * 40_000
    bucket.pipe("/rows/a.csv", content)
    whole, reads = bucket.open, []

    class Broken:
        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, place: int) -> None:
            reads.append(place)
            self.file.seek(place)

        def read(self, size: int) -> bytes:
            if len(reads) == 1 and self.file.tell():
                raise ConnectionError("gone")
            return self.file.read(size)

    monkeypatch.setattr(type(bucket), "open", lambda self, name, mode: Broken(whole(name, mode)))
    data = Data(url="memory://rows/a.csv")
    with pytest.raises(PullError, match=r"memory://rows/a\.csv cannot be read: ConnectionError: gone; check"):
        pull_dataset(data, cache=cache)
    assert peek_dataset(data, cache=cache) is None
    pulled = pull_dataset(data, cache=cache)
    assert pulled.path.name == "a.csv" and pulled.path.read_bytes() == content and reads == [0, 4 << 20]


def test_a_bucket_without_its_package_names_the_package(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(PullError, match=r"s3://bucket/tiny needs a package .*; pip install 'mloc-dagster\[s3\]'"):
        pull_model(ModelSource(type="s3", identifier="s3://bucket/tiny"), cache=cache)
    with pytest.raises(PullError, match="s3://bucket/rows"):
        pull_dataset(Data(source=RowSource(type="s3", bucket="bucket", path="/rows")), cache=cache)


@pytest.fixture
def s3(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A server that s3fs talks to."""
    s3fs = pytest.importorskip("s3fs", reason="pip install 'mloc-dagster[s3]'")
    monkeypatch.setenv("AWS_ENDPOINT_URL", hub.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    return hub


def test_a_model_in_s3(s3: Hub, cache: Cache) -> None:
    weights = os.urandom(9 << 20)
    s3.files |= {
        "/bucket/m/tiny/config.json": b"{}",
        "/bucket/m/tiny/sub/model.safetensors": weights,
        "/bucket/x": b"x",
    }
    seen: list[tuple[int, int | None]] = []
    source = ModelSource(type="s3", identifier="s3://bucket/m/tiny")
    pulled = pull_model(source, cache=cache, progress=lambda done, total: seen.append((done, total)))
    assert (pulled.path / "sub/model.safetensors").read_bytes() == weights
    assert pulled.size == len(weights) + 2 and seen[-1] == (pulled.size, pulled.size)
    assert pull_model(source, cache=cache).from_cache


def test_rows_in_s3_in_the_older_dialect(s3: Hub, cache: Cache) -> None:
    s3.files["/bucket/rows/a.jsonl"] = b"{}\n"
    pulled = pull_dataset(Data(source=RowSource(type="s3", bucket="bucket", path="rows/a.jsonl")), cache=cache)
    assert (pulled.path.name, pulled.path.read_bytes()) == ("a.jsonl", b"{}\n")


def test_a_mirror_in_s3(s3: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.files["/bucket/mirror/models/acme/tiny/config.json"] = b"{}"
    pulled = pull_model(ModelSource(identifier="acme/tiny"), cache=cache, mirror="s3://bucket/mirror/")
    assert pulled.origin == "s3://bucket/mirror/models/acme/tiny"
    monkeypatch.setenv("MLOC_MIRROR_ONLY", "1")
    with pytest.raises(PullError, match="acme/other is not at s3://bucket/mirror/models/acme/other"):
        pull_model(ModelSource(identifier="acme/other"), cache=cache, mirror="s3://bucket/mirror/")
