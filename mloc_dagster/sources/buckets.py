"""Folders and files behind an fsspec address such as `s3://bucket/prefix`."""

from __future__ import annotations

from pathlib import Path

from mloc_dagster.sources.pulled import Progress, PullError


def fill(url: str, folder: Path, progress: Progress | None) -> None:
    """Copy all files below an address into a folder; those that are whole already stay. Raises PullError."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        files, root = fsspec.url_to_fs(url)
    except (ImportError, ValueError):
        raise PullError(f"{scheme}:// needs its extra: pip install 'mloc-dagster[{'s3' if scheme == 's3' else scheme}]'") from None
    try:
        found = files.find(root, detail=True)
        if not found:
            raise PullError(f"nothing is at {url}; check bucket and path")
        _copy(files, root, found, folder, progress)
    except PullError:
        raise
    except Exception as error:  # each file system raises its own kinds
        raise PullError(f"{url} cannot be read: {type(error).__name__}: {str(error)[:150]}; check the address and credentials") from None


def exists(url: str) -> bool:
    """Whether there is anything at an address; False also when it cannot be reached."""
    import fsspec

    try:
        files, root = fsspec.url_to_fs(url)
        return bool(files.exists(root))
    except Exception:  # each file system raises its own kinds
        return False


def _copy(files, root: str, found: dict, folder: Path, progress: Progress | None) -> None:  # noqa: ANN001
    total = sum(int(info.get("size") or 0) for info in found.values())
    done = 0
    for name, info in sorted(found.items()):
        relative = name[len(root.rstrip("/")) :].lstrip("/") or Path(name).name
        target = folder / relative
        if ".." in Path(relative).parts:
            raise PullError(f"{name} would be written outside of its folder")
        if not (target.exists() and target.stat().st_size == info.get("size")):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            files.get_file(name, str(part))
            part.rename(target)
        done += int(info.get("size") or 0)
        if progress:
            progress(done, total)
