"""The signature inside a document: JSON Signature Format (JSF 0.82) with Ed25519, over the canonical JSON of RFC 8785.

What is signed is the whole document with its signature, but for the signature's value. Our documents hold texts and
whole numbers alone, with ASCII keys, for which sorting keys and leaving out blanks is what RFC 8785 asks.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from mloc_dagster.spec.base import Json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Document = dict[str, Json]
_ALGORITHM = "Ed25519"


class BadSignature(Exception):
    """A signature that is missing, is no signature, or is of another document; the message says which."""


def signed(document: Document, key: Ed25519PrivateKey) -> Document:
    """Return the document with its signature."""
    public = {"kty": "OKP", "crv": _ALGORITHM, "x": _text(key.public_key().public_bytes_raw())}
    head = {"algorithm": _ALGORITHM, "publicKey": public}
    value = _text(key.sign(canonical({**document, "signature": head})))
    return {**document, "signature": {**head, "value": value}}


def signer(document: Document) -> Ed25519PublicKey:
    """Return the key by which a document is validly signed; raises BadSignature. Whose key that is, it can't say."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = document.get("signature")
    if found is None:
        raise BadSignature("the document is not signed: its signature was removed")
    try:
        public, value, algorithm = found["publicKey"], _bytes(found["value"]), found["algorithm"]
        if algorithm != _ALGORITHM or public["crv"] != _ALGORITHM or set(found) != {"algorithm", "publicKey", "value"}:
            raise BadSignature(f"the signature is none of ours: only {_ALGORITHM}, with its public key, is read")
        key = Ed25519PublicKey.from_public_bytes(_bytes(public["x"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadSignature("the signature cannot be read: its key or its value is damaged") from None
    try:
        key.verify(value, canonical({**document, "signature": {k: v for k, v in found.items() if k != "value"}}))
    except InvalidSignature:
        raise BadSignature("the signature does not fit: the document was changed after it was signed") from None
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return a name for a key that people can compare: the first bytes of the SHA-256 of it."""
    import hashlib

    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def canonical(document: Document) -> bytes:
    """Return the bytes that are signed."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
