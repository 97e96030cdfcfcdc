"""Files over HTTP, continued where an interrupted download stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag, urlsplit

from mloc_dagster.files.archives import ArchiveError, extract_archive
from mloc_dagster.sources.pulled import Progress, PullError, clear, remove, shown
from mloc_dagster.store.digests import file_digest

if TYPE_CHECKING:
    import requests

_BLOCK = 1 << 20
_STAMP = ".stamp"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TRIES, _PAUSE_SECONDS, _TIMEOUT_SECONDS = 4, 0.5, 60.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def fill(url: str, folder: Path, progress: Progress | None) -> None:
    """Download a URL into a folder; an archive is unpacked.

    A URL that ends in `#sha256=<hex>` is checked against it. Raises PullError.
    """
    address, fragment = urldefrag(url)
    name = PurePosixPath(unquote(urlsplit(address).path)).name or "download"
    part, stamp = folder / f".{name}", folder / f".{name}{_STAMP}"
    for entry in folder.iterdir():
        if entry not in (part, stamp):  # what a pull left that was killed while it unpacked
            remove(entry)
    download(address, part, progress)
    expected = fragment.removeprefix("sha256=").lower() if fragment.startswith("sha256=") else None
    if expected and file_digest(part) != f"sha256:{expected}":
        clear(folder)
        raise PullError(f"{shown(url)} is not the file with sha256 {expected}; check the address and the digest")
    if name.lower().endswith(_ARCHIVES):
        _unpack(part, folder, url)
    else:
        part.rename(folder / name)
    stamp.unlink(missing_ok=True)


def download(url: str, part: Path, progress: Progress | None = None, headers: Mapping[str, str] | None = None) -> None:
    """Download to a file, going on from the bytes that are in it if they are of the same version.

    `<part>.stamp` beside it says which version that is; an empty one stands for any. Raises PullError.
    """
    import requests

    reason, stamp = "", part.with_name(part.name + _STAMP)
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            asked = {**(headers or {}), "Accept-Encoding": "identity", **_rest(part, stamp)}
            with requests.get(url, headers=asked, stream=True, timeout=_TIMEOUT_SECONDS) as answer:
                if answer.status_code == 416 or answer.ok:
                    if _take(answer, part, stamp, progress):
                        return
                    reason = "the connection broke off"
                else:
                    reason = f"the server answered {answer.status_code}"
                    if answer.status_code not in _PASSING:
                        break
        except requests.RequestException as error:
            reason = type(error).__name__
    raise PullError(f"{shown(url)} cannot be downloaded: {reason}; check the address and the network")


def _unpack(packed: Path, folder: Path, url: str) -> None:
    unpacked = folder / ".unpacked"
    try:
        content = extract_archive(packed, unpacked)
    except ArchiveError as error:
        clear(folder)
        raise PullError(f"{shown(url)}: {error}") from None
    packed.unlink()
    for entry in list(content.iterdir()):
        entry.rename(folder / entry.name)
    shutil.rmtree(unpacked)


def _rest(part: Path, stamp: Path) -> dict[str, str]:
    """The headers that ask for the rest only of the very file that was begun."""
    if not (part.exists() and part.stat().st_size and stamp.exists()):
        return {}
    version = stamp.read_text("utf-8")
    return {"Range": f"bytes={part.stat().st_size}-"} | ({"If-Range": version} if version else {})


def _take(answer: requests.Response, part: Path, stamp: Path, progress: Progress | None) -> bool:
    """Write what comes; returns whether the file is whole now."""
    if answer.status_code == 416:  # there is no rest: it is whole already, or another file
        have, whole = part.stat().st_size, answer.headers.get("Content-Range", "").rpartition("/")[2]
        if whole != str(have):
            stamp.unlink(missing_ok=True)
        return whole == str(have)
    done = part.stat().st_size if answer.status_code == 206 else 0
    if done and not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
        stamp.unlink()
        return False
    if not done:
        part.write_bytes(b"")
        _note(answer, stamp)
    length = answer.headers.get("Content-Length")
    total = done + int(length) if length else None
    with part.open("ab" if done else "wb") as file:
        for block in answer.iter_content(_BLOCK):
            done += file.write(block)
            if progress:
                progress(done, total)
    return total is None or done == total


def _note(answer: requests.Response, stamp: Path) -> None:
    """Remember which version of the file this is; without a strong ETag or a date, a broken download starts anew."""
    etag = answer.headers.get("ETag")
    version = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
    stamp.unlink(missing_ok=True)
    if version:
        stamp.write_text(version, "utf-8")
