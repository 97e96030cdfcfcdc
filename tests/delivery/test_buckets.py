"""Delivery to S3: the real s3fs against a server on the loopback interface."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import _registry

from mloc_dagster.delivery import DeliveryError, deliver
from mloc_dagster.spec.output import Destination
from mloc_dagster.store.home import Home
from tests.delivery.conftest import tree


def to(**more: object) -> Destination:
    return Destination.model_validate({"type": "s3", "bucket": "models", "retries": 0, "retry_backoff_sec": 0} | more)


def objects(s3: Any) -> dict[str, bytes]:
    """All objects of the bucket."""
    listed = s3.list_objects_v2(Bucket="models").get("Contents", [])
    return {item["Key"]: s3.get_object(Bucket="models", Key=item["Key"])["Body"].read() for item in listed}


def test_every_file_of_the_result_arrives_and_twice_gives_the_same(folder: Path, home: Home, s3: Any) -> None:
    expected = {f"team/a/best/{name}": content for name, content in tree(folder).items()}
    assert "team/a/best/final_lora/adapter_model.safetensors" in expected
    for _ in range(2):
        told = deliver(folder, to(prefix="/team/a/", path="best"), home, "t")
        assert objects(s3) == expected
    assert told == {"delivered_to": "s3://models/team/a/best", "files": len(expected)}


def test_a_file_of_several_parts_arrives_whole(folder: Path, home: Home, s3: Any) -> None:
    large = bytes(range(256)) * (440 << 10)  # 110 MiB: above the size that goes in one part
    (folder / "artifacts" / "final_lora.tar.gz").write_bytes(large)
    deliver(folder, to(), home, "t")
    body = s3.get_object(Bucket="models", Key="artifacts/final_lora.tar.gz")
    assert body["ContentLength"] == len(large) and body["Body"].read() == large
    assert "-" in body["ETag"], "it went in one part"


def test_the_manifest_comes_last(folder: Path, home: Home, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    put, sent = s3fs.S3FileSystem._put_file, []

    async def breaks_off(self: Any, path: str, key: str, **more: Any) -> None:
        if key.endswith("responses.json") and not sent:
            sent.append(key)
            raise ConnectionError("gone")
        await put(self, path, key, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", breaks_off)
    with pytest.raises(DeliveryError, match=r"was tried once and failed: s3://models/responses.json: .*gone"):
        deliver(folder, to(), home, "t")
    assert objects(s3) and "manifest.json" not in objects(s3)
    sent.clear()
    deliver(folder, to(retries=1), home, "t")
    assert objects(s3) == tree(folder)


def test_a_bucket_that_is_not_there(folder: Path, home: Home, s3: Any) -> None:
    with pytest.raises(DeliveryError, match=r"s3://other/x/\S+: .*does not exist; check output.destination.bucket"):
        deliver(folder, to(bucket="other", path="x", retries=3), home, "t")


def test_without_credentials(
    folder: Path, home: Home, s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DeliveryError, match="check the credentials"):
        deliver(folder, to(retries=3), home, "t")


def test_dots_that_come_from_the_environment(
    folder: Path, home: Home, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM", "..")
    with pytest.raises(DeliveryError, match=r"s3://models/\*\*\*/x has \.\. in it|s3://models/\.\./x has"):
        deliver(folder, to(prefix="${TEAM}", path="x"), home, "t")
    assert objects(s3) == {}


def test_without_its_package(folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DeliveryError, match=r"needs the extra s3: pip install 'mloc-dagster\[s3\]'"):
        deliver(folder, to(), home, "t")
