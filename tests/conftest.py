"""The order of the tests: files with the most slow tests first, so that two workers end at about the same time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("MLOC_ENGINE_IDLE", "0")  # no test leaves an engine behind, except those that are about engines

os.environ.setdefault("MLOC_POOL_IDLE", "3")  # pools of homes that tests leave behind end soon


os.environ.setdefault("MLOC_STAGE_POOL_IDLE", "30")  # the warm process of stages is one for all tests, and ends soon

for _name in ("COLUMNS", "LINES"):  # the terminal of whoever starts the tests: tables have the width that a test says
    os.environ.pop(_name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file, slow tests weighed by the time that they may take; within a file the order stays."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if item.get_closest_marker("slow"):
            limit = item.get_closest_marker("timeout")
            seconds[item.path] += int(limit.args[0]) if limit else 300
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a library sets for itself when a test loads it (vLLM its log level) is not there for the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[str]:
    """The address of an S3 server, in a process of its own: vLLM looks into all modules, and moto's do not bear it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


@pytest.fixture
def s3(bucket_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the server, which has no bucket but `models` and is empty again afterwards."""
    import boto3
    import requests
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
    requests.post(f"{bucket_server}/moto-api/reset", timeout=10)
