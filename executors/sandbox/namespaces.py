"""Containment by Linux namespaces through `unshare` and `setpriv` of util-linux, where bubblewrap is not installed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from executors.sandbox.ended import BackendName
from executors.sandbox.trial import tried
from executors.sandbox.view import KERNEL_SWITCHES, View


@dataclass(frozen=True)
class Namespaces:
    """The same namespaces, view and loss of capabilities as with bubblewrap, set up by `rooms.py`.

    The kernel guarantees the same, and the same is only watched. A folder of the view that has other mounts below it
    is shown without them.
    """

    name: ClassVar[BackendName] = "namespaces"
    contained: ClassVar[bool] = True
    overhead: ClassVar[int] = 2

    def command(self, view: View, command: Sequence[str]) -> list[str]:
        """The command line of unshare: process 1 of the new namespaces shuts the doors, then starts the command."""
        line = [shutil.which("setpriv") or "setpriv", "--pdeathsig", "KILL"]
        line += [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"]
        line += ["--kill-child=KILL", "--net", "--ipc", "--uts", "--cgroup"]
        text = Path(__file__).with_name("rooms.py").read_text(encoding="utf-8")
        plan = {
            "work": str(view.work),
            "scratch": str(view.scratch),
            "readable": [str(path) for path in view.readable],
            "links": {str(path): os.readlink(path) for path in view.links},
            "hidden": [str(path) for path in view.hidden],
            "switches": KERNEL_SWITCHES,
        }
        return [*line, "--", sys.executable, "-I", "-S", "-c", text, json.dumps(plan), *command]

    def refusal(self) -> str | None:
        """Why unshare does not work here."""
        missing = next((name for name in ("unshare", "setpriv") if shutil.which(name) is None), None)
        return f"{missing} is not installed" if missing else tried(self.command)
