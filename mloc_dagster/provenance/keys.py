"""The Ed25519 key of a home: made on first use, readable by its user alone; or one that MLOC_PROVENANCE_KEY names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.files.atomic import locked, write_private
from mloc_dagster.store.home import Home

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SETTING = "MLOC_PROVENANCE_KEY"
_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out KEY.pem"


class KeyUnusable(Exception):
    """A key that is not there or is none; the message says which, why, and what to do."""


def signing_key(home: Home) -> Ed25519PrivateKey:
    """Return the key that documents are signed with; raises KeyUnusable."""
    named = os.environ.get(SETTING)
    if named:
        return _private(Path(named).expanduser(), f"{SETTING} names {named}, which")
    path = own_key(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        if not path.exists():
            write_private(path, _new())
    return _private(path, str(path))


def trusted_key(home: Home) -> Ed25519PublicKey | None:
    """Return the public half of the key that this home signs with, or None when it has signed nothing yet."""
    return signing_key(home).public_key() if os.environ.get(SETTING) or own_key(home).exists() else None


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key (PEM); raises KeyUnusable."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyUnusable(f"{path} is no public key: {_reason(error)}; name a PEM file such as {_own_name()}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyUnusable(f"{path} holds a key of another kind than Ed25519")
    return key


def as_pem(key: Ed25519PublicKey) -> str:
    """Return a public key as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def own_key(home: Home) -> Path:
    """Where the key of a home is, unless a setting names another one."""
    return home.root / "keys" / "provenance.pem"


def _private(path: Path, what: str) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(f"{what} is no private key without password: {_reason(error)}; {_MAKE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"{what} is a key of another kind than Ed25519; {_MAKE}")
    return key


def _new() -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]) or type(error).__name__


def _own_name() -> str:
    from mloc_dagster.provenance.names import PUBLIC_KEY

    return PUBLIC_KEY
