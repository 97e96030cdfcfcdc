"""No containment: only for deployments that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from executors.sandbox.ended import BackendName
from executors.sandbox.view import View


@dataclass(frozen=True)
class Unprotected:
    """Runs the command as this user, with its files and the network.

    Only the limits hold, the environment is emptied, and the process group is killed at the end: a command that makes
    a session of its own outlives it.
    """

    name: ClassVar[BackendName] = "none"
    contained: ClassVar[bool] = False
    overhead: ClassVar[int] = 0

    def command(self, view: View, command: Sequence[str]) -> list[str]:
        """The command as it is."""
        return list(command)

    def refusal(self) -> str | None:
        """It works everywhere."""
        return None
