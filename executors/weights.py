"""The weights a stage starts from, and the digest that says which ones were really used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.fetch import Wanted, alternatives, kind_of, locate, unpack
from mloc_dagster.files.archives import is_archive_name
from mloc_dagster.spec.model import CheckpointLoad

MODEL_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
_FORMATS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


@dataclass(frozen=True)
class Start:
    """A model folder, and an adapter folder that a checkpoint puts on it."""

    model: Path
    adapter: Path | None = None
    warnings: tuple[str, ...] = ()


def starting_weights(ctx: TaskContext) -> Start:
    """Return what `checkpoint.load` or `model.source` names.

    A checkpoint that was asked for and cannot be loaded fails the stage; the base model never takes its place.
    """
    load = ctx.spec.checkpoint.load
    if load is None:
        return Start(_base(ctx))
    wanted = Wanted(
        "checkpoint.load",
        ("final_model", "final_lora"),
        load.path,
        load.task_id,
        load.url,
        load.headers,
        load.timeout_sec,
        load.type,
        load.filename,
    )
    found = locate(wanted, results=ctx.results, downloads=ctx.out / ".cache" / "downloads")
    if load.filename and found.is_dir() and is_archive_name(load.filename):
        found = _inner(found, load.filename)
    folder = unpack(found, ctx.out / ".cache", archive_format=load.archive_format)
    for part in (load.subdir, None if found.name == load.filename else load.filename):
        inner = _inner(folder, part) if part else folder
        folder = inner if inner.is_dir() else folder
    folder = unpack(folder, ctx.out / ".cache", marks=(MODEL_FILE, ADAPTER_FILE))
    warnings = _unread(load, wanted)
    return Start(_base(ctx), folder, warnings) if (folder / ADAPTER_FILE).exists() else Start(folder, None, warnings)


def _inner(folder: Path, part: str) -> Path:
    if not (folder / part).exists():
        raise ExecutorError(f"checkpoint.load: {folder} has no {part!r}.", "Check subdir and filename.")
    return folder / part


def _unread(load: CheckpointLoad, wanted: Wanted) -> tuple[str, ...]:
    """Warnings for keys that fit nothing of what is given."""
    kinds = [kind_of(*one) for one in alternatives(wanted)]
    keys = [f"type {load.type}"] if load.type not in (None, *kinds) else []
    if "http" not in kinds:
        keys += [key for key in ("headers", "timeout_sec") if key in load.model_fields_set]
    return tuple(f"checkpoint.load.{key} is not used: what is given is of type {', '.join(kinds)}" for key in keys)


def trusts_code(ctx: TaskContext) -> bool:
    """Whether a model may run its own code: the file asks for it and the deployment allows it."""
    source, vllm, transformers = ctx.spec.model.source, ctx.spec.model.vllm, ctx.spec.model.transformers
    asked = any(part and part.trust_remote_code for part in (source, vllm, transformers))
    return asked and ctx.code_allowed


@dataclass(frozen=True)
class WeightsDigest:
    """`sha256:<hex>` over names and bytes of weight files: of all folders together, and of each one alone."""

    whole: str
    parts: tuple[str, ...]


def digest(*folders: Path) -> str:
    """Return `sha256:<hex>` over names and bytes of the weight files of the folders, in order."""
    return digests(*folders).whole


def digests(*folders: Path) -> WeightsDigest:
    """Return the digest of the folders together, as `digest` does, and of each alone; every file is read once."""
    texts = ["".join(_lines(folder)) for folder in folders]
    return WeightsDigest(_digest_of("".join(texts)), tuple(map(_digest_of, texts)))


def _digest_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _lines(folder: Path) -> Iterator[str]:
    files = next((found for pattern in _FORMATS if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise ExecutorError(f"{folder} holds no weights.", f"Expected one of {', '.join(_FORMATS)}.")
    for file in files:
        known = file.stat()
        yield f"{file.name} {_file_digest(file, known.st_size, known.st_mtime_ns)}\n"


@lru_cache(maxsize=4096)
def _file_digest(file: Path, size: int, changed: int) -> str:
    """SHA-256 hex of a file, read once by this process and the shards that it forks while it stays as it is."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _base(ctx: TaskContext) -> Path:
    if ctx.model_path is None:
        raise ExecutorError("spec.model.source is missing, so there are no weights.", "Name a model in model.source.")
    if not (ctx.model_path / MODEL_FILE).exists():
        raise ExecutorError(f"{ctx.model_path} is no model folder: it has no {MODEL_FILE}.", "Check model.source.")
    return ctx.model_path
