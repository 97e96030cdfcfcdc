"""Holds published weights against their document: every file's digest, the weights' digest, the signature, the key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mloc_dagster.files.links import inside
from mloc_dagster.provenance.keys import KeyUnusable, as_pem, public_key
from mloc_dagster.provenance.names import CARD, DOCUMENT, FOLDER, ON_HUBS, PUBLIC_KEY, WEIGHTS, files_of
from mloc_dagster.provenance.signature import BadSignature, Document, fingerprint, signer
from mloc_dagster.spec.base import Json
from mloc_dagster.store.digests import file_digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Kind = Literal["document", "signature", "key", "changed", "missing", "added", "weights"]
_MOST_BYTES = 64 << 20


class Unreadable(Exception):
    """A document that is not there or is none; the message says why."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as the document says."""

    kind: Kind
    what: str


@dataclass(frozen=True)
class Verified:
    """What was looked at and what was found wrong; the key is a name to compare (see `fingerprint`)."""

    document: Path
    model: str
    files: tuple[str, ...]
    key: str | None
    findings: tuple[Finding, ...]


def read(path: Path) -> Document:
    """Read a document; raises Unreadable."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise Unreadable(f"{path} is larger than {_MOST_BYTES >> 20} MiB, which no document of ours is")
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Unreadable(f"there is no {path.name} in {path.parent}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path} is no JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict) or found.get("bomFormat") != "CycloneDX":
        raise Unreadable(f"{path} is no CycloneDX document")
    return found


def verify(document: Path, roots: tuple[Path, ...], trusted: Ed25519PublicKey | None) -> Verified:
    """Check a document and the files that it names, which lie below one of the roots; raises Unreadable.

    A file of a folder of weights is also looked for at the top of a root, where hubs have it. Of the folder and its
    archive one may be absent; what is there must be whole.
    """
    found = read(document)
    try:
        told = _Told.of(found)
    except (KeyError, TypeError, IndexError, AttributeError):
        raise Unreadable(f"{document} does not name a model and its files as ours do") from None
    findings = list(_of_signature(found, document.parent / PUBLIC_KEY, trusted))
    seen, wrong = _of_files(told, roots)
    try:
        key = fingerprint(signer(found))
    except BadSignature:
        key = None
    return Verified(document, told.model, tuple(seen), key, (*findings, *wrong))


@dataclass(frozen=True)
class _Told:
    """What a document says: the SHA-256 in hex (two where hubs get another form) by name of each file, the folder of
    the weights and their digest."""

    model: str
    files: dict[str, tuple[str, ...]]
    folder: str
    weights: str

    @classmethod
    def of(cls, document: Document) -> _Told:
        model = document["metadata"]["component"]
        properties = {one["name"]: one["value"] for one in model["properties"]}
        files = {str(one["name"]): _hashes(one) for one in model["components"]}
        return cls(str(model["name"]), files, str(properties[FOLDER]), str(properties[WEIGHTS]))

    @property
    def of_folder(self) -> dict[str, tuple[str, ...]]:
        return {name: hashes for name, hashes in self.files.items() if name.startswith(f"{self.folder}/")}


def _hashes(file: Document) -> tuple[str, ...]:
    on_hubs = [str(one["value"]) for one in file.get("properties", ()) if one["name"] == ON_HUBS]
    return str(file["hashes"][0]["content"]), *on_hubs


def _of_signature(document: Document, beside: Path, trusted: Ed25519PublicKey | None) -> Iterator[Finding]:
    try:
        key = signer(document)
    except BadSignature as error:
        yield Finding("signature", str(error))
        return
    if trusted is None:
        way_out = "name the publisher's public key with --key"
        yield Finding("key", f"it is signed by the key {fingerprint(key)}, which nothing here vouches for; {way_out}")
    elif key.public_bytes_raw() != trusted.public_bytes_raw():
        what = f"it is signed by the key {fingerprint(key)}, not by {fingerprint(trusted)}, which is trusted"
        yield Finding("key", f"{what}: someone else has signed it")
    try:
        if beside.exists() and as_pem(public_key(beside)) != as_pem(key):
            yield Finding("key", f"{beside.name} beside it is another key than the one that signed it")
    except KeyUnusable as error:
        yield Finding("key", str(error))


def _of_files(told: _Told, roots: tuple[Path, ...]) -> tuple[list[str], list[Finding]]:
    folder = _folder_of_weights(told, roots)
    places: dict[str, Path | None] = {}
    for name in told.files:
        if name in told.of_folder:
            places[name] = _in(folder, name.removeprefix(f"{told.folder}/")) if folder else None
        else:
            places[name] = next((path for root in roots for path in _spellings(root, name) if path), None)
    others = [name for name in told.files if name not in told.of_folder]
    if folder is None and not any(places[name] for name in others):
        return [], [Finding("missing", f"neither {told.folder}/ nor an archive of it is here")]
    expected = told.of_folder if folder else {}
    wanted = {**expected, **{name: told.files[name] for name in others if places[name]}}
    findings = [found for name, hashes in wanted.items() if (found := _of_file(name, hashes, places[name]))]
    if folder is not None:
        findings += _added(told, folder)
        findings += _of_weights(told, folder)
    return list(wanted), findings


def _folder_of_weights(told: _Told, roots: tuple[Path, ...]) -> Path | None:
    """The folder itself, or a root that has its files at its top."""
    for root in roots:
        if (root / told.folder).is_dir():
            return root / told.folder
    plain = [name.removeprefix(f"{told.folder}/") for name in told.of_folder]
    return next((root for root in roots if any((root / name).is_file() for name in plain if name != CARD)), None)


def _spellings(root: Path, name: str) -> Iterator[Path | None]:
    yield _in(root, name)
    yield _in(root, Path(name).name)


def _in(root: Path, name: str) -> Path | None:
    """A file below a root; None for what is not there, or where a name or link leads out of it."""
    found = inside(root / name, root)
    return found if found and found.is_file() else None


def _of_file(name: str, hashes: tuple[str, ...], path: Path | None) -> Finding | None:
    if path is None:
        return Finding("missing", f"{name} is missing")
    now = file_digest(path).removeprefix("sha256:")
    if now in hashes:
        return None
    return Finding("changed", f"{name} was changed: its SHA-256 is {now[:16]}…, the document says {hashes[0][:16]}…")


def _added(told: _Told, folder: Path) -> Iterator[Finding]:
    """Files that the document does not name; at the top of a hub's copy also those that hubs put there."""
    ours = {DOCUMENT, PUBLIC_KEY, ".gitattributes"} if folder.name != told.folder else set()
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix()
        hub = folder.name != told.folder and name.startswith((".cache/", ".git/"))
        if f"{told.folder}/{name}" not in told.files and name not in ours and not hub:
            yield Finding("added", f"{told.folder}/{name} is not in the document: it was added")


def _of_weights(told: _Told, folder: Path) -> Iterator[Finding]:
    """The digest over all weight files, by which gates and results call the weights."""
    from executors.base import ExecutorError
    from executors.weights import digest

    try:
        now: Json = digest(folder)
    except ExecutorError as error:
        yield Finding("weights", error.what)
        return
    if now != told.weights:
        yield Finding("weights", f"the weights are {now[:23]}…, the document says {told.weights[:23]}…")
