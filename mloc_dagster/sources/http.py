"""Files over HTTP, continued where an interrupted download stopped."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

from mloc_dagster.sources.pulled import Progress, PullError
from mloc_dagster.store.archives import ArchiveError, extract_archive

_BLOCK = 1 << 20
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def fill(url: str, folder: Path, progress: Progress | None, headers: dict[str, str] | None = None, timeout: float = 300.0) -> str | None:
    """Download a URL into a folder; an archive is unpacked. Raises PullError."""
    name = PurePosixPath(unquote(urlparse(url).path)).name or "download"
    target = folder / f".{name}.part"
    download(url, target, progress, headers, timeout)
    if name.lower().endswith(_ARCHIVES):
        packed = target.rename(folder / f".{name}")
        try:
            content = extract_archive(packed, folder / ".unpacked")
        except ArchiveError as error:
            raise PullError(f"{url}: {error}") from None
        for entry in list(content.iterdir()):
            entry.rename(folder / entry.name)
        packed.unlink()
        _remove_empty(folder / ".unpacked")
    else:
        target.rename(folder / name)
    return None


def download(url: str, target: Path, progress: Progress | None, headers: dict[str, str] | None = None, timeout: float = 300.0, tries: int = 3) -> None:
    """Download a URL to a file, going on from the bytes that are there. Raises PullError after the last try."""
    import requests

    for attempt in range(tries):
        try:
            _attempt(url, target, progress, headers or {}, timeout)
            return
        except requests.HTTPError as error:
            if error.response.status_code < 500 or attempt + 1 == tries:
                raise PullError(f"{url} answered {error.response.status_code}; check the address and model.source") from None
        except (requests.RequestException, OSError) as error:
            if attempt + 1 == tries:
                raise PullError(f"{url} cannot be read: {type(error).__name__}: {str(error)[:150]}; check the network") from None


def _attempt(url: str, target: Path, progress: Progress | None, headers: dict[str, str], timeout: float) -> None:
    import requests

    have = target.stat().st_size if target.exists() else 0
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=asked, stream=True, timeout=timeout) as answer:
        if answer.status_code == 416 and have:
            return
        answer.raise_for_status()
        continued = answer.status_code == 206
        done = have if continued else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        with target.open("ab" if continued else "wb") as file:
            for block in answer.iter_content(_BLOCK):
                file.write(block)
                done += len(block)
                if progress:
                    progress(done, total)
        if total is not None and done < total:
            raise OSError(f"{done} of {total} bytes came")


def _remove_empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()
