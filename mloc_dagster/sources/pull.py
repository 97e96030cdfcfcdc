"""Pull a model or a data set: from a mirror when it has it, else from its source, through the cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mloc_dagster.sources import buckets, git, http, huggingface, package
from mloc_dagster.sources.cache import Cache
from mloc_dagster.sources.pulled import Progress, Pulled, PullError, tree_size
from mloc_dagster.spec.data import Data
from mloc_dagster.spec.model import ModelSource
from mloc_dagster.store.digests import Digests
from mloc_dagster.store.home import Home


@dataclass(frozen=True)
class _Origin:
    """How to get something: a local path as it is, or a cache key with the function that fills it."""

    text: str
    local: Path | None = None
    key: str = ""
    fill: Callable[[Path], str | None] | None = None


def pull_model(source: ModelSource, *, cache: Cache, mirror: str | None = None, progress: Progress | None = None) -> Pulled:
    """Return a folder that transformers can load. Raises PullError."""
    pulled = _get(_model_origin(source, mirror, progress), cache)
    if pulled.path.is_dir() and not (pulled.path / "config.json").is_file():
        raise PullError(f"{source.identifier} is no model: it has no config.json; check model.source.identifier")
    return pulled


def pull_dataset(data: Data, *, cache: Cache, mirror: str | None = None, progress: Progress | None = None) -> Pulled:
    """Return the folder or file of a data set, its split not applied yet. Raises PullError."""
    return _get(_dataset_origin(data, mirror, progress), cache)


def peek_model(source: ModelSource, *, cache: Cache, mirror: str | None = None) -> Pulled | None:
    """Return what `pull_model` would give, when it needs no pull; else None."""
    return _peek(lambda: _model_origin(source, mirror, None), cache)


def peek_dataset(data: Data, *, cache: Cache, mirror: str | None = None) -> Pulled | None:
    """Return what `pull_dataset` would give, when it needs no pull; else None."""
    return _peek(lambda: _dataset_origin(data, mirror, None), cache)


def _peek(find: Callable[[], _Origin], cache: Cache) -> Pulled | None:
    try:
        origin = find()
        if origin.local is not None:
            return _get(origin, cache)
    except PullError:
        return None
    found = cache.look(origin.key)
    return Pulled(found.path, found.digest, found.revision, found.size, True, origin.text) if found else None


def _get(origin: _Origin, cache: Cache) -> Pulled:
    if origin.local is not None:
        if not origin.local.exists():
            raise PullError(f"{origin.local} is not there; check the path (relative ones start from the task file's folder)")
        digest = Digests(Home(cache.root.parent)).of(origin.local)
        return Pulled(origin.local, digest, None, tree_size(origin.local), True, origin.text)
    assert origin.fill is not None
    found = cache.fetch(origin.key, origin.fill)
    return Pulled(found.path, found.digest, found.revision, found.size, found.from_cache, origin.text)


def _model_origin(source: ModelSource, mirror: str | None, progress: Progress | None) -> _Origin:
    name, revision = source.identifier, source.revision
    mirrored = _mirrored(mirror, "models", name) if source.type == "huggingface" else None
    if mirrored:
        return _address(mirrored, progress)
    if source.type == "local":
        return _Origin(f"local:{name}", local=Path(name.removeprefix("file://")).expanduser())
    if source.type == "package":
        return _Origin(f"package:{name}", key=package.key(name), fill=lambda folder: package.fill(name, folder))
    if source.type == "git":
        return _Origin(f"git:{name}", key=f"git:{name}@{revision}", fill=lambda folder: git.fill(name, revision, folder))
    if source.type in ("http", "s3"):
        return _address(name if "://" in name else f"s3://{name}", progress)
    key = f"huggingface:model:{_endpoint()}:{name}@{revision or 'main'}"
    return _Origin(f"huggingface:{name}", key=key, fill=lambda folder: huggingface.fill(name, revision, "model", folder, progress))


def _dataset_origin(data: Data, mirror: str | None, progress: Progress | None) -> _Origin:
    if data.source is not None:
        if data.source.type == "local":
            return _Origin(f"local:{data.source.path}", local=Path(data.source.path))
        where = data.source.path if "://" in data.source.path else f"s3://{data.source.bucket}/{data.source.path.lstrip('/')}"
        return _address(where, progress)
    name = data.dataset_name or data.url
    if not name:
        raise PullError("no data set is named; set data.dataset_name or data.url")
    if "://" in name:
        return _address(name, progress)
    if name.startswith(("/", ".", "~")):
        return _Origin(f"local:{name}", local=Path(name).expanduser())
    mirrored = _mirrored(mirror, "datasets", name)
    if mirrored:
        return _address(mirrored, progress)
    key = f"huggingface:dataset:{_endpoint()}:{name}@{data.revision or 'main'}"
    return _Origin(
        f"huggingface:{name}", key=key, fill=lambda folder: huggingface.fill(name, data.revision, "dataset", folder, progress)
    )


def _address(url: str, progress: Progress | None) -> _Origin:
    if url.startswith("file://"):
        return _Origin(url, local=Path(url.removeprefix("file://")))
    if url.startswith(("http://", "https://")):
        return _Origin(url, key=f"http:{url}", fill=lambda folder: http.fill(url, folder, progress))

    def fill(folder: Path) -> None:
        buckets.fill(url, folder, progress)

    return _Origin(url, key=url, fill=fill)


def _mirrored(mirror: str | None, kind: str, name: str) -> str | None:
    """Return where a mirror keeps a hub id, or None when it doesn't have it."""
    if not mirror:
        return None
    url = f"{mirror.rstrip('/')}/{kind}/{name}"
    if "://" not in url:
        url = f"file://{Path(url).expanduser().resolve()}"
    if url.startswith("file://"):
        return url if Path(url.removeprefix("file://")).exists() else None
    return url if buckets.exists(url) else None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/")
