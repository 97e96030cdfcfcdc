"""Which means of containment is used on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Protocol

from executors.base import ExecutorError
from executors.sandbox.bubblewrap import Bubblewrap
from executors.sandbox.ended import BackendName
from executors.sandbox.namespaces import Namespaces
from executors.sandbox.unprotected import Unprotected
from executors.sandbox.view import View

INSTALL = "apt-get install bubblewrap"
VARIABLE = "MLOC_SANDBOX"


class Backend(Protocol):
    """Builds the command line that runs a command contained."""

    name: ClassVar[BackendName]
    contained: ClassVar[bool]
    """It has namespaces of its own: `/tmp` is its own, and processes can be limited without counting the user's."""
    overhead: ClassVar[int]
    """Processes of its own, counting the one that is started."""

    def command(self, view: View, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` with no more than `view` in sight."""
        ...

    def refusal(self) -> str | None:
        """Why it does not work on this machine, found by trying it; None when it works."""
        ...


def chosen() -> Backend:
    """The backend that `MLOC_SANDBOX` names (bubblewrap, namespaces, none), else the first that works.

    Raises ExecutorError when none does: nothing runs unprotected unless the deployment says so.
    """
    wanted = os.environ.get(VARIABLE, "auto") or "auto"
    if wanted == "none":
        return Unprotected()
    known: dict[str, Backend] = {"bubblewrap": Bubblewrap(), "namespaces": Namespaces()}
    if wanted != "auto" and wanted not in known:
        raise ExecutorError(
            f"{VARIABLE} is {wanted!r}, which is no sandbox.", f"Use one of auto, {', '.join(known)}, none."
        )
    reasons: list[str] = []
    for backend in known.values() if wanted == "auto" else [known[wanted]]:
        reason = _refusal(backend)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise ExecutorError(
        f"Code and shell commands are not run, as no sandbox works on this machine ({'; '.join(reasons)}).",
        f"Install bubblewrap (`{INSTALL}`), allow user namespaces, or accept code that can do all that this user can: "
        f"{VARIABLE}=none.",
    )


@cache
def _refusal(backend: Backend) -> str | None:
    return backend.refusal()
