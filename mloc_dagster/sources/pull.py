"""A model or a data set, from its source, through the cache.

A name without a revision means the newest of the first pull: it stays what it was until its cache entry is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from mloc_dagster.sources import buckets, git, http, huggingface, package
from mloc_dagster.sources import mirror as mirrors
from mloc_dagster.sources.cache import Cache, Fill
from mloc_dagster.sources.pulled import Progress, Pulled, PullError, local_path, shown, tree_size
from mloc_dagster.spec.data import Data
from mloc_dagster.spec.model import ModelSource
from mloc_dagster.store.digests import Digests
from mloc_dagster.store.home import Home

_DATA_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".arrow", ".gz", ".zst")

_Mirror = Callable[[mirrors.Kind, str], str | None]
"""Says where the mirror keeps a hub id; None when it doesn't."""


@dataclass(frozen=True)
class _Origin:
    """How to get something: a path on this machine as it is, or a cache key with the function that fills it."""

    text: str
    local: Path | None = None
    key: str = ""
    fill: Fill | None = None


def pull_model(
    source: ModelSource, *, cache: Cache, mirror: str | None = None, progress: Progress | None = None
) -> Pulled:
    """Return a folder that transformers can load. Raises PullError.

    A hub id is taken from the mirror (a folder or an address) when that has it.
    """
    origin = _model_origin(source, partial(mirrors.find, mirror), progress)
    return _get(_checked(origin), cache)


def pull_dataset(data: Data, *, cache: Cache, mirror: str | None = None, progress: Progress | None = None) -> Pulled:
    """Return the folder or the file of a data set, its split not applied yet. Raises PullError."""
    origin = _dataset_origin(data, partial(mirrors.find, mirror), progress)
    return _file_or_folder(_get(origin, cache))


def peek_model(source: ModelSource, *, cache: Cache, mirror: str | None = None) -> Pulled | None:
    """Return what `pull_model` would give, when that is here already; else None. Asks nobody outside."""
    return _peek(lambda at: _checked(_model_origin(source, at, None)), mirror, cache)


def peek_dataset(data: Data, *, cache: Cache, mirror: str | None = None) -> Pulled | None:
    """Return what `pull_dataset` would give, when that is here already; else None. Asks nobody outside."""
    found = _peek(lambda at: _dataset_origin(data, at, None), mirror, cache)
    return _file_or_folder(found) if found else None


def _peek(origin_at: Callable[[_Mirror], _Origin], mirror: str | None, cache: Cache) -> Pulled | None:
    lookups: list[_Mirror] = [partial(mirrors.find, mirror)]
    if mirror and not mirrors.is_local(mirror):  # it may have the name, or not
        lookups = [partial(mirrors.place, mirror), lambda kind, name: None]
    for lookup in lookups:
        try:
            origin = origin_at(lookup)
            if origin.local is not None:
                return _get(origin, cache)
        except PullError:
            continue
        found = cache.look(origin.key)
        if found:
            return Pulled(found.path, found.digest, found.revision, found.size, True, origin.text)
    return None


def _get(origin: _Origin, cache: Cache) -> Pulled:
    if origin.local is not None:
        if not origin.local.exists():
            raise PullError(f"{origin.local} is not there; check the path")
        digest = Digests(Home(cache.root.parent)).of(origin.local)
        return Pulled(origin.local, digest, None, tree_size(origin.local), True, origin.text)
    assert origin.fill is not None
    found = cache.fetch(origin.key, origin.fill)
    return Pulled(found.path, found.digest, found.revision, found.size, found.from_cache, origin.text)


def _checked(origin: _Origin) -> _Origin:
    """The same origin, which raises PullError when what it gives is no model, and keeps nothing of it."""
    if origin.local is not None:
        if origin.local.exists():
            _check_model(origin.local, origin.text)
        return origin
    make = origin.fill
    assert make is not None

    def fill(folder: Path) -> str | None:
        revision = make(folder)
        _check_model(folder, origin.text)
        return revision

    return replace(origin, fill=fill)


def _check_model(folder: Path, origin: str) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise PullError(f"{origin} is a LoRA adapter, not a model; name it in model.adapters, and its base model here")
    raise PullError(f"{origin} is no model: it has no config.json; check model.source.identifier")


def _file_or_folder(pulled: Pulled) -> Pulled:
    """What was pulled from the address of one data file is that file."""
    file = pulled.path / unquote(pulled.origin).rpartition("/")[2]
    return replace(pulled, path=file) if "://" in pulled.origin and file.is_file() else pulled


def _model_origin(source: ModelSource, at: _Mirror, progress: Progress | None) -> _Origin:
    name, revision = source.identifier, source.revision
    if source.type == "local":
        return _Origin(f"local:{name}", local=local_path(name))
    if source.type == "package":
        return _Origin(f"package:{name}", key=package.key(name), fill=lambda folder: package.fill(name, folder))
    if source.type == "git":
        key = f"git:{name}@{revision}"
        return _Origin(f"git:{shown(name)}", key=key, fill=lambda folder: git.fill(name, revision, folder))
    if source.type in ("http", "s3"):
        return _address(name if "://" in name else f"{source.type}://{name}", progress)
    huggingface.check_id(name)
    mirrored = at("models", name)
    return _address(mirrored, progress) if mirrored else _hub("model", name, revision, progress)


def _dataset_origin(data: Data, at: _Mirror, progress: Progress | None) -> _Origin:
    name = (data.source.path if data.source else None) or data.dataset_name or data.url
    if not name:
        raise PullError("no data set is named; set data.dataset_name or data.url")
    if "://" in name:
        return _address(name, progress)
    if data.source is not None and data.source.type == "s3":
        return _address(f"s3://{data.source.bucket}/{name.lstrip('/')}", progress)
    if data.source is not None or name.startswith(("/", ".", "~")) or name.endswith(_DATA_FILES):
        return _Origin(f"local:{name}", local=local_path(name))
    huggingface.check_id(name)
    mirrored = at("datasets", name)
    return _address(mirrored, progress) if mirrored else _hub("dataset", name, data.revision, progress)


def _hub(kind: huggingface.Kind, name: str, revision: str | None, progress: Progress | None) -> _Origin:
    key = f"huggingface:{kind}:{huggingface.endpoint()}:{name}@{revision or 'main'}"
    return _Origin(
        f"huggingface:{name}", key=key, fill=lambda folder: huggingface.fill(name, revision, kind, folder, progress)
    )


def _address(url: str, progress: Progress | None) -> _Origin:
    if url.startswith("file://"):
        return _Origin(url, local=local_path(url))
    if url.startswith(("http://", "https://")):
        return _Origin(shown(url), key=f"http:{url}", fill=lambda folder: http.fill(url, folder, progress))
    return _Origin(shown(url), key=url, fill=lambda folder: buckets.fill(url, folder, progress))
