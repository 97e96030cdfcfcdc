"""Bearer tokens, and codes that a browser exchanges once for a cookie.

At rest there are only hashes. A plain SHA-256 is right for them: a token holds 256 random bits, which nobody can guess
however fast the hash is; slow hashes are for passwords, which people choose, and would cost every request.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from mloc_dagster.files.atomic import write_private
from mloc_dagster.store.home import Home

Scope = Literal["read", "submit", "admin", "worker"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each of the first three holds those before it; a machine's token opens what is for workers, and nothing else does."""
WORKER: Scope = "worker"
LOCAL = "local"
"""The token that `mloc up` makes at first start, for this machine."""
CODE_SECONDS = 3600.0
SESSION_SECONDS = 7 * 86_400.0
_MOST_SESSIONS = 1000
_PREFIX = "mloc"
T = TypeVar("T")


@dataclass(frozen=True)
class Token:
    """What is kept of a token; times in seconds since the epoch."""

    id: str
    name: str
    scope: Scope
    sha256: str
    created_at: float

    def allows(self, scope: Scope) -> bool:
        """Whether it opens what asks for a scope."""
        if WORKER in (scope, self.scope):
            return scope == self.scope
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


@dataclass(frozen=True)
class _Code:
    sha256: str
    token: str
    until: float


@dataclass(frozen=True)
class _Kept:
    """The file: tokens, and codes that nobody has used yet."""

    tokens: tuple[Token, ...] = ()
    codes: tuple[_Code, ...] = ()


class Tokens:
    """The tokens of a home. Every change goes to the file under a lock; readers see it at once."""

    def __init__(self, home: Home) -> None:
        self._file = home.root / "tokens.json"
        self._lock = threading.Lock()
        self._seen: tuple[tuple[int, int, int], _Kept] | None = None

    def all(self) -> tuple[Token, ...]:
        """Return them in the order in which they were made."""
        return self._read().tokens

    def create(self, name: str, scope: Scope) -> str:
        """Make a token and return it, which is the only time that it is seen; ValueError when the name is taken."""
        number, secret = secrets.token_hex(4), secrets.token_urlsafe(32)

        def change(kept: _Kept) -> tuple[_Kept, str]:
            if any(token.name == name for token in kept.tokens):
                raise ValueError(f"there is a token {name!r} already")
            token = Token(number, name, scope, _hash(secret), time.time())
            return _Kept((*kept.tokens, token), kept.codes), f"{_PREFIX}_{number}_{secret}"

        return self._change(change)

    def revoke(self, name_or_id: str) -> bool:
        """Forget a token, its codes and its browser sessions; returns whether there was one."""

        def change(kept: _Kept) -> tuple[_Kept, bool]:
            gone = {token.id for token in kept.tokens if name_or_id in (token.id, token.name)}
            tokens = tuple(token for token in kept.tokens if token.id not in gone)
            return _Kept(tokens, tuple(code for code in kept.codes if code.token not in gone)), bool(gone)

        return self._change(change)

    def check(self, given: str) -> Token | None:
        """Return the token that this text is, or None."""
        prefix, _, rest = given.partition("_")
        number, _, secret = rest.partition("_")
        token = self.by_id(number)
        right = hmac.compare_digest(_hash(secret), token.sha256 if token else _hash("nobody"))
        return token if right and prefix == _PREFIX else None

    def by_id(self, number: str) -> Token | None:
        """Return a token that is not revoked."""
        return next((token for token in self._read().tokens if token.id == number), None)

    def new_code(self, token_id: str) -> str:
        """Return a code that gives one browser the rights of a token, once, within CODE_SECONDS."""
        code = secrets.token_urlsafe(24)

        def change(kept: _Kept) -> tuple[_Kept, str]:
            fresh = tuple(one for one in kept.codes if one.until > time.time())
            return _Kept(kept.tokens, (*fresh, _Code(_hash(code), token_id, time.time() + CODE_SECONDS))), code

        return self._change(change)

    def use_code(self, code: str) -> Token | None:
        """Return the token behind a code, and forget the code; None when it was used or is too old."""
        digest = _hash(code)
        if not any(hmac.compare_digest(one.sha256, digest) for one in self._read().codes):
            return None  # a guess costs no write

        def change(kept: _Kept) -> tuple[_Kept, str | None]:
            found = next((one for one in kept.codes if hmac.compare_digest(one.sha256, digest)), None)
            rest = tuple(one for one in kept.codes if one is not found)
            return _Kept(kept.tokens, rest), found.token if found and found.until > time.time() else None

        number = self._change(change)
        return self.by_id(number) if number else None

    def _read(self) -> _Kept:
        try:
            stat = self._file.stat()
        except FileNotFoundError:
            return _Kept()
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if self._seen is None or self._seen[0] != stamp:
                raw = json.loads(self._file.read_text("utf-8"))
                tokens = tuple(Token(**token) for token in raw["tokens"])
                self._seen = stamp, _Kept(tokens, tuple(_Code(**code) for code in raw["codes"]))
            return self._seen[1]

    def _change(self, change: Callable[[_Kept], tuple[_Kept, T]]) -> T:
        with _alone(self._file.with_suffix(".lock")):
            kept, answer = change(self._read())
            write_private(self._file, json.dumps(asdict(kept), indent=1) + "\n")
        return answer


class Sessions:
    """Browsers that have exchanged a code or a token for a cookie; they end with the web server."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._open: dict[str, tuple[str, float]] = {}

    def begin(self, token: Token) -> str:
        """Return the cookie's value."""
        value = secrets.token_urlsafe(32)
        self._open[_hash(value)] = token.id, time.time() + SESSION_SECONDS
        while len(self._open) > _MOST_SESSIONS:
            del self._open[next(iter(self._open))]
        return value

    def check(self, value: str) -> Token | None:
        """Return the token behind a cookie; None when it is too old, or the token was revoked."""
        number, until = self._open.get(_hash(value), ("", 0.0))  # found by hash: timing tells nothing of the value
        return self._tokens.by_id(number) if until > time.time() else None


def local_token(home: Home) -> Token:
    """Return the token of this machine; at first start it is made, and written into the home for its user alone."""
    tokens, file = Tokens(home), local_file(home)
    with _alone(home.root / "token.lock"):
        found = tokens.check(file.read_text("utf-8").strip()) if file.exists() else None
        if found is None:
            tokens.revoke(LOCAL)
            written = tokens.create(LOCAL, "admin")
            write_private(file, written + "\n")
            found = tokens.check(written)
    assert found is not None
    return found


def local_file(home: Home) -> Path:
    """Where the token of this machine is."""
    return home.root / "token"


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
