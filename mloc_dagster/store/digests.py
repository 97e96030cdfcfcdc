"""SHA-256 digests of files and folders, remembered so that a large model is read once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from mloc_dagster.files.atomic import write_text
from mloc_dagster.store.home import Home

_BLOCK = 1 << 20


def file_digest(path: Path) -> str:
    """Return `sha256:<hex>` of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


class Digests:
    """Digests of paths; a file whose size and modification time haven't changed isn't read again."""

    def __init__(self, home: Home) -> None:
        self._folder = home.index / "files"

    def of(self, path: Path) -> str:
        """Return `sha256:<hex>` of a file, or of a folder's sorted relative paths and file digests."""
        if path.is_file():
            return self._file(path)
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{self._file(file)}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    def _file(self, path: Path) -> str:
        stat = path.stat()
        state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        memo = self._folder / hashlib.sha256(str(state[0]).encode()).hexdigest()[:32]
        try:
            seen = json.loads(memo.read_text("utf-8"))
            if seen["state"] == state:
                return seen["digest"]
        except (OSError, ValueError, KeyError):
            pass
        digest = file_digest(path)
        if stat.st_size > _BLOCK and os.access(self._folder.parent.parent, os.W_OK):
            write_text(memo, json.dumps({"state": state, "digest": digest}))
        return digest
