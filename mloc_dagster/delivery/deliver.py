"""Deliver one run folder to the destination of its stage.

Each kind either delivers all of it or raises DeliveryError; delivering twice leaves the same.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlparse

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.output import Destination
from mloc_dagster.spec.references import BadReference, resolve
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import Envelope, read_envelope

_INTERNAL_HOSTS = {"localhost", "127.0.0.1", "orchestrator"}
_INTERNAL_PATH = "/api/v1/results"


class DeliveryError(Exception):
    """A delivery that did not succeed; the message says where to, why, and what to do."""


def deliver(folder: Path, destination: Destination, home: Home, task: str) -> dict[str, Json]:
    """Deliver a finished run folder; returns what was delivered where. Raises DeliveryError after the last try."""
    try:
        target = Destination.model_validate(resolve(destination.model_dump(), _no_stage, os.environ))
    except BadReference as error:
        raise DeliveryError(f"output.destination: {error}") from None
    kinds: dict[str, Callable[[], dict[str, Json]]] = {
        "local": lambda: _local(folder, target, home),
        "http": lambda: _http(folder, target),
        "s3": lambda: _s3(folder, target),
        "huggingface": lambda: _hub(folder, target),
    }
    for attempt in range(target.retries + 1):
        try:
            return kinds[target.type]()
        except DeliveryError:
            raise
        except Exception as error:
            if attempt == target.retries:
                where = target.url or target.repo_id or target.bucket or target.path
                reason = f"{type(error).__name__}: {error}"[:300]
                raise DeliveryError(
                    f"{task}: {target.type} delivery to {where} failed {attempt + 1} times; {reason}"
                ) from error
            time.sleep(min(target.retry_backoff_sec * (attempt + 1), 120))
    raise AssertionError("unreachable")


def _no_stage(name: str) -> dict[str, Json]:
    raise BadReference(f"a destination cannot use results of a stage ({name})")


def _local(folder: Path, target: Destination, home: Home) -> dict[str, Json]:
    place = home.resolve_inside(target.path or folder.parent.name)
    if place == folder or place in folder.parents:
        return {"delivered_to": str(folder)}
    aside = place.with_name(f".{place.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(folder, aside, copy_function=_link_or_copy)
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    aside.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return {"delivered_to": str(place)}


def _http(folder: Path, target: Destination) -> dict[str, Json]:
    import requests

    assert target.url is not None
    parsed = urlparse(target.url)
    if parsed.hostname in _internal_hosts() and parsed.path.rstrip("/") == _INTERNAL_PATH:
        return {"delivered_to": str(folder), "note": "our own results address: kept in the results folder"}
    envelope = read_envelope(folder / "responses.json")
    headers = {"Idempotency-Key": envelope.task_id, **target.headers}
    answer = requests.request(
        target.method.upper(),
        target.url,
        json=envelope.model_dump(mode="json"),
        headers=headers,
        timeout=target.timeout_sec,
    )
    if answer.status_code != 409:
        answer.raise_for_status()
    sent = [_send_file(path, target, envelope) for path in _archives(folder)]
    return {"delivered_to": target.url, "files": sent, "status": answer.status_code}


def _send_file(path: Path, target: Destination, envelope: Envelope) -> str:
    import requests

    with path.open("rb") as file:
        answer = requests.post(
            f"{str(target.url).rstrip('/')}/{envelope.task_id}/files",
            files={"file": (path.name, file)},
            headers={"Idempotency-Key": f"{envelope.task_id}/{path.name}", **target.headers},
            timeout=target.timeout_sec,
        )
    if answer.status_code != 409:
        answer.raise_for_status()
    return path.name


def _s3(folder: Path, target: Destination) -> dict[str, Json]:
    import fsspec

    prefix = "/".join(part.strip("/") for part in (target.bucket, target.prefix, target.path) if part)
    try:
        files = fsspec.filesystem("s3")
    except ImportError:
        raise DeliveryError("an s3 destination needs the extra s3: pip install 'mloc-dagster[s3]'") from None
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in names:
        files.put_file(str(path), f"{prefix}/{path.relative_to(folder).as_posix()}")
    return {"delivered_to": f"s3://{prefix}", "files": len(names)}


def _hub(folder: Path, target: Destination) -> dict[str, Json]:
    from huggingface_hub import HfApi

    model = next((folder / name for name in ("final_model", "final_lora") if (folder / name).is_dir()), folder)
    api, repo = HfApi(), str(target.repo_id)
    api.create_repo(repo, private=target.private, exist_ok=True)
    commit = api.upload_folder(repo_id=repo, folder_path=str(model), path_in_repo=target.path or None)
    return {"delivered_to": repo, "commit": str(commit.oid)}


def _internal_hosts() -> set[str]:
    return _INTERNAL_HOSTS | set(filter(None, [os.environ.get("MLOC_PUBLIC_HOST")]))


def _archives(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / "artifacts").glob("*.tar.gz"))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
