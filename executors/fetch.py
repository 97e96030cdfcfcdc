"""Files that are named by alternatives `{path, taskId, url}`: the first one that works is used (SPEC §3)."""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executors.base import ExecutorError
from mloc_dagster.files.archives import ArchiveError, extract_archive
from mloc_dagster.files.atomic import new_folder


@dataclass(frozen=True)
class Wanted:
    """One group of alternatives. `wanted_in_task` are the names to look for in a task's folder, best first."""

    key: str
    wanted_in_task: tuple[str, ...]
    path: str | None = None
    task_id: str | None = None
    url: str | None = None
    headers: Mapping[str, str] | None = None
    timeout: float = 300.0
    kind: str | None = None
    """Which alternatives go first: `local`, `http`, `s3` or `task`."""
    filename: str | None = None
    """What a download is called, and a file in a task's folder that goes before `wanted_in_task`."""


def locate(wanted: Wanted, *, results: Path | None, downloads: Path) -> Path:
    """Return a local file or folder; raises ExecutorError naming what was tried and why it failed."""
    tried: list[str] = []
    for key, value in alternatives(wanted):
        try:
            return _of_task(wanted, value, results) if key == "taskId" else _get(wanted, value, downloads)
        except (OSError, ValueError) as error:
            tried.append(f"{key} {value!r} {error}")
    if not tried:
        raise ExecutorError(f"{wanted.key} names neither path, taskId nor url.", "Give one of them.")
    raise ExecutorError(f"{wanted.key} cannot be used: {'; '.join(tried)}.", "Mend one of path, taskId, url.")


def alternatives(wanted: Wanted) -> list[tuple[str, str]]:
    """Key and value of what is given, in the order of use: path, taskId, url, but those of the wanted kind first."""
    named = (("path", wanted.path), ("taskId", wanted.task_id), ("url", wanted.url))
    given = [(key, value) for key, value in named if value is not None]
    return sorted(given, key=lambda one: wanted.kind is not None and kind_of(*one) != wanted.kind)


def kind_of(key: str, value: str) -> str:
    """Where an alternative is: `task`, `http`, `local`, or the scheme of another file system, such as `s3`."""
    scheme, separator, _ = value.partition("://")
    if key == "taskId":
        return "task"
    return "local" if not separator or scheme == "file" else "http" if scheme == "https" else scheme


def unpack(source: Path, into: Path, *, archive_format: str = "auto", marks: tuple[str, ...] = ()) -> Path:
    """Return the folder that holds one of the `marks` (such as config.json): a folder itself, or an archive unpacked.

    Raises ExecutorError when it is neither; members that would leave the folder are refused.
    """
    if source.is_dir():
        return _folder_with(source, marks)
    if archive_format == "none":
        raise ExecutorError(f"{source} is no folder, and archive_format is none.", "Write archive_format: auto.")
    folder = into / f"{source.name}-{_key(str(source))}.unpacked"
    if not folder.exists():
        try:
            with new_folder(folder) as partial:
                extract_archive(source, partial, archive_format)
        except ArchiveError as error:
            raise ExecutorError(f"{error}.", "Check the archive.") from None
    return _folder_with(folder, marks)


def _of_task(wanted: Wanted, task_id: str, results: Path | None) -> Path:
    """Raises ValueError when the task left nothing that is wanted."""
    file = wanted.filename
    names = (file, f"artifacts/{file}") if file and ".." not in Path(file).parts else ()
    found = _in_task(task_id, (*names, *wanted.wanted_in_task), results)
    if found is None:
        raise ValueError(f"has no {' or '.join((*names, *wanted.wanted_in_task))} among the results here")
    return found


def _in_task(task_id: str, names: tuple[str, ...], results: Path | None) -> Path | None:
    if results is None or not task_id or ".." in Path(task_id).parts or Path(task_id).is_absolute():
        return None
    folder = results / task_id
    for name in names:
        found = sorted(folder.glob(name)) + sorted(folder.glob(f"*/{name}"))
        if found:
            return found[-1]
    return None


def _get(wanted: Wanted, address: str, downloads: Path) -> Path:
    """A file or folder on this machine; what lies elsewhere is copied below `downloads`. Raises OSError, ValueError."""
    scheme, separator, _ = address.partition("://")
    if not separator or scheme == "file":
        path = Path(address.removeprefix("file://")).expanduser()
        if not path.exists():
            raise ValueError("is not there")
        return path
    called = wanted.filename or address.split("?")[0].rstrip("/")
    name = called.rpartition("/")[2] or "download"
    folder = downloads / _key(address)
    folder.mkdir(parents=True, exist_ok=True)
    if scheme in ("http", "https"):
        return _download(wanted, address, folder / name)
    return _copy(address, folder / name)


def _download(wanted: Wanted, url: str, target: Path) -> Path:
    partial = target.with_name(f".{target.name}.partial")
    request = urllib.request.Request(url, headers=dict(wanted.headers or {}))
    with urllib.request.urlopen(request, timeout=wanted.timeout) as answer, partial.open("wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)
        expected = answer.headers.get("Content-Length")
    if expected is not None and partial.stat().st_size != int(expected):
        raise ValueError(f"broke off after {partial.stat().st_size} of {expected} bytes")
    partial.replace(target)
    return target


def _copy(address: str, target: Path) -> Path:
    """Copy a file or folder from a bucket (`s3://`, `gs://`, ...) with fsspec."""
    import fsspec

    scheme = address.partition("://")[0]
    try:
        files, root = fsspec.url_to_fs(address)
    except ImportError:
        package = "'mloc-dagster[s3]'" if scheme == "s3" else f"'fsspec[{scheme}]'"
        raise ValueError(f"needs a package that is not installed; run: pip install {package}") from None
    try:
        found = files.find(root)
        with new_folder(target.with_name("copied")) as partial:
            for name in found:
                inner = name[len(root.rstrip("/")) :].strip("/") or target.name
                (partial / inner).parent.mkdir(parents=True, exist_ok=True)
                files.get_file(name, str(partial / inner))
    except Exception as error:  # each file system raises its own kinds
        raise ValueError(f"cannot be read: {type(error).__name__}: {str(error)[:150]}") from None
    if not found:
        raise ValueError("is not there")
    copied = target.with_name("copied")
    return copied / target.name if found == [root] else copied


def _key(text: str) -> str:
    """A short name for an address; two of them may end alike."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _folder_with(folder: Path, marks: tuple[str, ...]) -> Path:
    inner = sorted(path for path in folder.glob("*") if path.is_dir())
    for candidate in (folder, *inner):
        if not marks or any((candidate / mark).exists() for mark in marks):
            return candidate
    raise ExecutorError(f"{folder} holds none of {', '.join(marks)}.", "Name the folder that does.")
