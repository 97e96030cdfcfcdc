"""Archives: made with one top folder, unpacked without trust."""

from __future__ import annotations

import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Set
from pathlib import Path, PurePosixPath

MAX_UNPACKED = 200 << 30
"""Bytes that an archive may unpack to."""

_BLOCK = 1 << 20
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError,
    RuntimeError,  # a zip with a password, or packed in a way that Python doesn't know
)  # fmt: skip
_SUFFIXES = {".zip": "zip", ".tar.gz": "tar", ".tgz": "tar", ".tar.bz2": "tar", ".tar.xz": "tar", ".tar": "tar"}


class ArchiveError(Exception):
    """An archive that is broken, dangerous or too large; the message says which and why."""


def make_archive(folder: Path, out: Path) -> Path:
    """Write `<out>/<folder name>.tar.gz` with the folder as its one top entry; the same files give the same bytes.

    A link becomes the file it leads to; ArchiveError when that is not in the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{folder.name}.tar.gz"
    aside = target.with_name(f".{target.name}.part")
    try:
        _pack(folder, aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def _pack(folder: Path, target: Path) -> None:
    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in [folder, *sorted(folder.rglob("*"))]:
            _add(tar, path, folder)
    with target.open("rb") as raw:
        os.fsync(raw.fileno())


def _add(tar: tarfile.TarFile, path: Path, folder: Path) -> None:
    if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(folder.resolve())):
        raise ArchiveError(f"{path} is a link to what is no file in {folder}; copy the file there")
    info = tarfile.TarInfo(str(Path(folder.name) / path.relative_to(folder)))
    info.mode = 0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644
    if path.is_dir():
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif path.is_file():
        info.size = path.stat().st_size
        with path.open("rb") as file:
            tar.addfile(info, file)


def extract_archive(
    archive: Path, out: Path, archive_format: str = "auto", subdir: str | None = None, limit: int = MAX_UNPACKED
) -> Path:
    """Unpack into `out` and return the folder that holds the content: `subdir`, or the one top folder, or `out`.

    Refuses absolute names, `..`, links that lead out, devices, and more than `limit` bytes. Raises ArchiveError.
    """
    kind = _kind(archive) if archive_format == "auto" else ("zip" if archive_format == "zip" else "tar")
    out.mkdir(parents=True, exist_ok=True)
    try:
        _unzip(archive, out, limit) if kind == "zip" else _untar(archive, out, limit)
    except _BROKEN as error:
        raise ArchiveError(f"{archive.name} cannot be unpacked: {error}") from None
    if subdir:
        _check_name(subdir, archive)
        if not (out / subdir).exists():
            raise ArchiveError(
                f"{archive.name} has no {subdir!r}; it has {', '.join(sorted(p.name for p in out.iterdir()))}"
            )
        return out / subdir
    entries = list(out.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else out


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is an archive."""
    return name.lower().endswith(tuple(_SUFFIXES))


def _kind(archive: Path) -> str:
    name = archive.name.lower()
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    if zipfile.is_zipfile(archive):
        return "zip"
    if tarfile.is_tarfile(archive):
        return "tar"
    raise ArchiveError(f"{archive.name} is no zip or tar archive; set archive_format")


def _untar(archive: Path, out: Path, limit: int) -> None:
    total = 0
    links: set[PurePosixPath] = set()
    files: set[PurePosixPath] = set()
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            _check_name(member.name, archive)
            _check_links(member, links, files, archive)
            total += member.size
            _check_size(total, limit, archive)
            tar.extract(member, out, filter="data")
            (links if member.issym() else files).add(PurePosixPath(member.name))
        assert tar.fileobj is not None
        while block := tar.fileobj.read(_BLOCK):  # the checksum of the compressed bytes is at their end
            total += len(block)
            _check_size(total, limit, archive)


def _check_links(member: tarfile.TarInfo, links: Set[PurePosixPath], files: Set[PurePosixPath], archive: Path) -> None:
    """Refuse links that could lead out.

    Python's own filter lets some pass in releases before the middle of 2025 (CVE-2025-4330, CVE-2025-4517): nothing
    may lie behind a link, a link may go up only to folders of the archive, and a hard link needs a file before it.
    """
    path, to = PurePosixPath(member.name), PurePosixPath(member.linkname)
    link = next((place for place in (path, *path.parents) if place in links), None)
    if link is not None:
        raise ArchiveError(f"{archive.name}: {member.name!r} would be written through the link {str(link)!r}")
    if member.issym():
        up = next((index for index, part in enumerate(to.parts) if part != ".."), len(to.parts))
        if to.is_absolute() or ".." in to.parts[up:] or up > len(path.parts) - 1 or path in files:
            raise ArchiveError(f"{archive.name}: the link {member.name!r} leads to {member.linkname!r}, outside of it")
    if member.islnk() and to not in files:
        raise ArchiveError(f"{archive.name}: the hard link {member.name!r} has no file {member.linkname!r} before it")


def _unzip(archive: Path, out: Path, limit: int) -> None:
    total = 0
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            _check_name(member.filename, archive)
            if (member.external_attr >> 28) & 0xF == 0xA:
                raise ArchiveError(f"{archive.name}: {member.filename} is a link, which a zip may not hold")
            target = out / member.filename
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with packed.open(member) as source, target.open("wb") as file:
                while block := source.read(_BLOCK):
                    total += len(block)
                    _check_size(total, limit, archive)
                    file.write(block)


def _check_name(name: str, archive: Path) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise ArchiveError(f"{archive.name}: {name!r} would be written outside of its folder")


def _check_size(total: int, limit: int, archive: Path) -> None:
    if total > limit:
        raise ArchiveError(f"{archive.name} unpacks to more than {limit} bytes")
