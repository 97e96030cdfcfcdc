"""Archives: made with one top folder, unpacked without trust."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

MAX_UNPACKED = 200 << 30
"""Bytes that an archive may unpack to."""

_SUFFIXES = {".zip": "zip", ".tar.gz": "tar", ".tgz": "tar", ".tar.bz2": "tar", ".tar.xz": "tar", ".tar": "tar"}


class ArchiveError(Exception):
    """An archive that is broken, dangerous or too large; the message says which and why."""


def make_archive(folder: Path, out: Path) -> Path:
    """Write `<out>/<folder name>.tar.gz` with the folder as its one top entry; the same files give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{folder.name}.tar.gz"
    aside = target.with_name(f".{target.name}.part")
    with (
        aside.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in [folder, *sorted(folder.rglob("*"))]:
            info = tar.gettarinfo(str(path), arcname=str(Path(folder.name) / path.relative_to(folder)))
            info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
            if info.isfile():
                with path.open("rb") as file:
                    tar.addfile(info, file)
            elif info.isdir():
                tar.addfile(info)
    aside.replace(target)
    return target


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
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
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
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            _check_name(member.name, archive)
            total += member.size
            _check_size(total, limit, archive)
            tar.extract(member, out, filter="data")


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
                while block := source.read(1 << 20):
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
