"""Values of `${NAME}` references: used where the step runs, never stored, logged or shown."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import TextIO

from mloc_dagster.spec.base import Json

HIDDEN = "***"
_WORTH_SEARCHING = 4
"""Shorter values are hidden only where they are the whole text: a secret `1` must not eat every 1."""


class Secrets(Mapping[str, str]):
    """An environment that remembers which of its values were read, so that they can be hidden afterwards."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        value = self._environment[name]
        if value:
            self._read.update([value, *(line for line in value.splitlines() if len(line) >= _WORTH_SEARCHING)])
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._environment

    def __iter__(self) -> Iterator[str]:
        return iter(self._environment)

    def __len__(self) -> int:
        return len(self._environment)

    def hide(self, value: Json) -> Json:
        """Return a JSON value with every secret that was read replaced by `***`, in keys too."""
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def _hide_text(self, text: str) -> str:
        for secret in sorted(self._read, key=len, reverse=True):
            if len(secret) >= _WORTH_SEARCHING:
                text = text.replace(secret, HIDDEN)
            elif text == secret:
                return HIDDEN
        return text


class HidingStream(io.TextIOBase):
    """A text stream that hides secrets line by line before they reach the real one."""

    def __init__(self, stream: TextIO, secrets: Secrets) -> None:
        self._stream = stream
        self._secrets = secrets
        self._rest = ""

    def write(self, text: str) -> int:
        """Take text; whole lines go on at once."""
        *lines, self._rest = (self._rest + text).splitlines(keepends=True) or [""]
        if self._rest.endswith(("\n", "\r")):
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            self._stream.write(self._secrets.hide(line))
        self._stream.flush()
        return len(text)

    def close_line(self) -> None:
        """Let an unfinished line go too."""
        self._stream.write(self._secrets.hide(self._rest))
        self._rest = ""
        self._stream.flush()

    def fileno(self) -> int:
        """Descriptor of the real stream, for child processes."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """It can be written to."""
        return True
