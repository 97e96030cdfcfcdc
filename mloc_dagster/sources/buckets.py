"""Folders and files behind an fsspec address such as `s3://bucket/prefix`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mloc_dagster.sources.pulled import Progress, PullError, clear, shown

_BLOCK = 1 << 22
_LISTING = ".listing"
_VERSION = ("size", "ETag", "LastModified", "mtime", "created")


def fill(url: str, folder: Path, progress: Progress | None) -> None:
    """Copy all files below an address into a folder, going on from the bytes that are there. Raises PullError."""
    files, root = _open(url)
    try:
        found = files.find(root, detail=True)
        if not found:
            raise PullError(f"nothing is at {shown(url)}; check bucket and path")
        _keep_same(folder, found)
        _copy(files, root, found, folder, progress)
    except PullError:
        raise
    except Exception as error:  # each file system raises its own kinds
        reason = f"{type(error).__name__}: {str(error)[:150]}"
        raise PullError(f"{shown(url)} cannot be read: {reason}; check the address and credentials") from None
    (folder / _LISTING).unlink()


def exists(url: str) -> bool:
    """Whether there is anything at an address; False also when it cannot be reached."""
    try:
        files, root = _open(url)
        return bool(files.exists(root))
    except Exception:  # each file system raises its own kinds
        return False


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = url.partition("://")[0]
    try:
        return fsspec.url_to_fs(url)
    except ImportError:
        package = "'mloc-dagster[s3]'" if scheme == "s3" else f"'fsspec[{scheme}]'"
        raise PullError(f"{shown(url)} needs a package that is not installed; pip install {package}") from None
    except ValueError as error:
        raise PullError(f"{shown(url)} is no address to pull from: {error}; write s3://… or https://…") from None


def _keep_same(folder: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Drop what an interrupted pull left, unless it was of the very same files."""
    versions = sorted((name, *(str(info.get(key)) for key in _VERSION)) for name, info in found.items())
    stamp = hashlib.sha256(repr(versions).encode()).hexdigest()
    listing = folder / _LISTING
    if not listing.exists() or listing.read_text("utf-8") != stamp:
        clear(folder)
        listing.write_text(stamp, "utf-8")


def _copy(
    files: Any, root: str, found: Mapping[str, Mapping[str, Any]], folder: Path, progress: Progress | None
) -> None:
    total = sum(int(info.get("size") or 0) for info in found.values())
    done = 0
    for name, info in sorted(found.items()):
        relative = name.removeprefix(root.rstrip("/")).lstrip("/") or PurePosixPath(name).name
        if ".." in PurePosixPath(relative).parts:
            raise PullError(f"{name} would be written outside of its folder; rename it in the bucket")
        target, size = folder / relative, int(info.get("size") or 0)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab") as file, files.open(name, "rb") as source:
            source.seek(file.tell())
            done += file.tell()
            while block := source.read(_BLOCK):
                done += file.write(block)
                if progress:
                    progress(done, total)
            if file.tell() != size:
                raise OSError(f"{relative} has {file.tell()} of {size} bytes")
