"""Signatures by which a receiver knows who sent a delivery, and when: HMAC-SHA256 over the time and the body."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable

TIMESTAMP, SIGNATURE = "X-MLOC-Timestamp", "X-MLOC-Signature"


def signed(secret: str | None, blocks: Iterable[bytes]) -> dict[str, str]:
    """Return the headers that sign a body, which is given in blocks; none without a secret.

    The message is the time (seconds since the epoch, as the header writes it), a full stop, and the body.
    """
    if secret is None:
        return {}
    moment = str(int(time.time()))
    code = hmac.new(secret.encode(), f"{moment}.".encode(), hashlib.sha256)
    for block in blocks:
        code.update(block)
    return {TIMESTAMP: moment, SIGNATURE: f"sha256={code.hexdigest()}"}
