"""Archives carry all of a folder, and what comes out of one stays where it was put."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from mloc_dagster.files.archives import ArchiveError, extract_archive, make_archive

LINK, HARD, DEVICE, PIPE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE
Member = tuple[str, bytes | None, str | bytes]
"""Name, kind (None: a plain file), and where a link leads or what a file holds."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "final_model"
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights").write_bytes(os.urandom(3 << 20))
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


def tarred(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, kind, value in members:
            info = tarfile.TarInfo(name)
            content = value if isinstance(value, bytes) else b""
            if kind is not None:
                info.type, info.linkname = kind, str(value)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def test_a_folder_comes_back_as_it_was(model: Path, tmp_path: Path) -> None:
    archive = make_archive(model, tmp_path / "artifacts")
    assert archive.name == "final_model.tar.gz"
    assert os.listdir(archive.parent) == [archive.name]
    with tarfile.open(archive) as tar:
        assert {name.split("/")[0] for name in tar.getnames()} == {"final_model"}
    assert contents(extract_archive(archive, tmp_path / "out")) == contents(model)


def test_the_same_files_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    first = make_archive(model, tmp_path / "first").read_bytes()
    os.utime(model / "config.json", (1, 1))
    (model / "config.json").chmod(0o600)
    assert make_archive(model, tmp_path / "second").read_bytes() == first


def test_linked_files_are_packed_as_files(model: Path, tmp_path: Path) -> None:
    os.link(model / "config.json", model / "hard.json")
    (model / "soft.json").symlink_to("config.json")
    content = extract_archive(make_archive(model, tmp_path / "artifacts"), tmp_path / "out")
    assert not (content / "soft.json").is_symlink()
    assert contents(content) == contents(model)


@pytest.mark.parametrize("target", ["/etc/hostname", "../other", "absent", "sub"])
def test_a_link_out_of_the_folder_is_not_packed(model: Path, tmp_path: Path, target: str) -> None:
    (model.parent / "other").write_text("secret")
    (model / "link").symlink_to(target)
    with pytest.raises(ArchiveError, match="copy the file there"):
        make_archive(model, tmp_path / "artifacts")
    assert not (tmp_path / "artifacts" / "final_model.tar.gz").exists()


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz"), ("zip", "")],
)
@pytest.mark.parametrize("told", ["by name", "by format", "by content"])
def test_every_format_is_unpacked(tmp_path: Path, suffix: str, mode: str, told: str) -> None:
    name = {"by name": f"m.{suffix}", "by format": "download", "by content": "download.bin"}[told]
    if suffix == "zip":
        archive = zipped(tmp_path / name, **{"m/config.json": "{}", "m/sub/x": "1"})
    else:
        archive = tmp_path / name
        plain = tarred(tmp_path / "plain", ("m/config.json", None, b"{}"), ("m/sub/x", None, b"1"))
        with tarfile.open(plain) as source, tarfile.open(str(archive), mode) as tar:  # type: ignore[call-overload]
            for member in source:
                tar.addfile(member, source.extractfile(member))
    content = extract_archive(archive, tmp_path / "out", suffix if told == "by format" else "auto")
    assert content == tmp_path / "out" / "m"
    assert contents(content) == {"config.json": b"{}", "sub": None, "sub/x": b"1"}


def test_a_subdir_is_taken_and_a_wrong_one_is_said(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "m.zip", **{"a/b/x": "1", "c/y": "2"})
    assert extract_archive(archive, tmp_path / "1", subdir="a/b") == tmp_path / "1" / "a" / "b"
    assert extract_archive(archive, tmp_path / "2") == tmp_path / "2"
    with pytest.raises(ArchiveError, match="no 'z'; it has a, c"):
        extract_archive(archive, tmp_path / "3", subdir="z")
    with pytest.raises(ArchiveError, match="outside"):
        extract_archive(archive, tmp_path / "4", subdir="../4")


def test_links_between_files_of_an_archive_are_kept(tmp_path: Path) -> None:
    archive = tarred(
        tmp_path / "hub.tar",
        ("m/blobs/1", None, b"weights"),
        ("m/snapshots/main/weights", LINK, "../../blobs/1"),
        ("m/again", HARD, "m/blobs/1"),
    )
    content = extract_archive(archive, tmp_path / "out")
    assert (content / "snapshots/main/weights").read_bytes() == (content / "again").read_bytes() == b"weights"


ESCAPES: dict[str, list[Member]] = {
    "up": [("../victim", None, b"x")],
    "up from within": [("a/../../victim", None, b"x")],
    "absolute": [("/tmp/victim", None, b"x")],
    "windows": [("..\\victim", None, b"x")],
    "drive": [("C:\\victim", None, b"x")],
    "absolute link": [("a", LINK, "/etc/hostname")],
    "link up": [("a/b", LINK, "../../victim")],
    "through a link": [("a", LINK, "b"), ("a/victim", None, b"x")],
    "onto a link": [("a", LINK, "b"), ("a", None, b"x")],
    "chain of links": [("x/l", LINK, "."), ("m", LINK, "x/l/l/../../..")],
    "chain behind a long path": [("d" * 200, LINK, "."), ("m", LINK, f"{'d' * 200}/" * 20 + "../../..")],
    "hard link to a link": [("a/b/t", None, b"x"), ("a/b/up", LINK, "../.."), ("h", HARD, "a/b/up")],
    "hard link to a file that became a link": [("a/f", None, b"x"), ("a/f", LINK, ".."), ("h", HARD, "a/f")],
    "hard link out": [("h", HARD, "../victim")],
    "absolute hard link": [("h", HARD, "/etc/hostname")],
    "device": [("null", DEVICE, "")],
    "pipe": [("pipe", PIPE, "")],
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_nothing_leaves_the_folder(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "victim").write_text("untouched")
    archive, out = tarred(tmp_path / "evil.tar", *ESCAPES[kind]), tmp_path / "in" / "out"
    with pytest.raises(ArchiveError, match=r"evil\.tar"):
        extract_archive(archive, out)
    assert (tmp_path / "in" / "victim").read_text() == "untouched"
    assert all(path.resolve().is_relative_to(out) for path in out.rglob("*"))


@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", "a/../../victim", "..\\victim"])
def test_a_zip_does_not_slip(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="outside of its folder"):
        extract_archive(zipped(tmp_path / "evil.zip", **{name: "x"}), tmp_path / "in" / "out")
    assert not (tmp_path / "in" / "victim").exists()


def test_a_zip_holds_no_links(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as packed:
        packed.writestr(link, "/etc/hostname")
    with pytest.raises(ArchiveError, match="link"):
        extract_archive(tmp_path / "evil.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "after the end"])
def test_an_archive_that_unpacks_to_too_much_is_stopped(tmp_path: Path, kind: str) -> None:
    zeros = bytes(8 << 20)
    if kind == "zip":
        archive = zipped(tmp_path / "bomb.zip", a=zeros.decode())
    else:
        plain = tarred(tmp_path / "plain", ("a", None, zeros if kind == "tar.gz" else b"x"))
        archive = tmp_path / "bomb.tar.gz"
        archive.write_bytes(gzip.compress(plain.read_bytes() + (b"" if kind == "tar.gz" else zeros)))
    with pytest.raises(ArchiveError, match="more than 1048576 bytes"):
        extract_archive(archive, tmp_path / "out", limit=1 << 20)
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) <= 1 << 20


def test_a_zip_that_lies_about_its_size_is_stopped(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "bomb.zip", a="0" * (8 << 20))
    raw = bytearray(archive.read_bytes())
    entry = raw.index(b"PK\1\2")
    raw[22:26] = raw[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    archive.write_bytes(raw)
    with pytest.raises(ArchiveError):
        extract_archive(archive, tmp_path / "out", limit=1 << 20)


@pytest.mark.parametrize("damage", ["flipped", "cut off", "no archive"])
@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_damaged_archive_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    noise, archive = os.urandom(1 << 20), tmp_path / f"m.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr("weights", noise)
    else:
        with tarfile.open(str(archive), f"w:{suffix[4:]}") as tar:  # type: ignore[call-overload]
            info = tarfile.TarInfo("weights")
            info.size = len(noise)
            tar.addfile(info, io.BytesIO(noise))
    raw = bytearray(archive.read_bytes())
    if damage == "flipped":
        raw[500_000] ^= 0xFF
    archive.write_bytes({"flipped": raw, "cut off": raw[:600_000], "no archive": b"<html>404</html>"}[damage])
    with pytest.raises(ArchiveError, match=f"m.{suffix} cannot be unpacked"):
        extract_archive(archive, tmp_path / "out")


def test_a_zip_with_a_password_is_said(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "m.zip", a="1" * 100)
    raw = bytearray(archive.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(raw)
    with pytest.raises(ArchiveError, match="password"):
        extract_archive(archive, tmp_path / "out")


def test_a_file_of_no_known_format_is_said(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>404</html>")
    with pytest.raises(ArchiveError, match=r"page\.html is no zip or tar archive; set archive_format"):
        extract_archive(tmp_path / "page.html", tmp_path / "out")
