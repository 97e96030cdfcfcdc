"""Containment by bubblewrap (https://github.com/containers/bubblewrap)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from executors.sandbox.ended import BackendName
from executors.sandbox.trial import tried
from executors.sandbox.view import KERNEL_SWITCHES, View

_SHARED_MEMORY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Bubblewrap:
    """Own user, mount, process, network, IPC and host name namespaces, no capabilities, no new privileges.

    The kernel guarantees: no file beyond the view, nothing written outside the work folder and `/tmp`, no network, no
    sight of other processes, and the end of all that was started with the end of the first process. It shares the
    kernel: a fault of the kernel is not contained, and the hardware's name and load can be read. A control group
    bounds memory of all together and (for root too) processes. Where this user can make none they are watched, as disk
    always is, which lets a fast command go beyond for a moment.
    """

    name: ClassVar[BackendName] = "bubblewrap"
    contained: ClassVar[bool] = True
    overhead: ClassVar[int] = 2

    def command(self, view: View, command: Sequence[str]) -> list[str]:
        """The command line of bwrap; the folders are mounted in this order, later ones over earlier ones."""
        line = [shutil.which("bwrap") or "bwrap", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
        line += ["--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", "--die-with-parent", "--new-session"]
        line += ["--cap-drop", "ALL", *_no_more_namespaces()]
        for link in view.links:
            line += ["--symlink", os.readlink(link), str(link)]
        line += ["--bind", str(view.scratch), "/tmp"]
        for path in view.readable:
            line += ["--ro-bind", str(path), str(path)]
        for path in view.hidden:
            line += ["--tmpfs", str(path)]
        line += ["--dev", "/dev", "--size", str(_SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm", "--proc", "/proc"]
        for path in KERNEL_SWITCHES:
            line += ["--ro-bind-try", path, path]
        line += ["--bind", str(view.work), str(view.work)]
        for path in ("/", "/dev", *map(str, view.hidden)):
            line += ["--remount-ro", path]
        return [*line, "--chdir", str(view.work), "--", *command]

    def refusal(self) -> str | None:
        """Why bwrap does not work here."""
        return "bwrap is not installed" if shutil.which("bwrap") is None else tried(self.command)


@cache
def _no_more_namespaces() -> list[str]:
    """`--disable-userns`, which bubblewrap has since 0.8: no capabilities through a namespace in the namespace."""
    told = subprocess.run(["bwrap", "--help"], capture_output=True, text=True, check=False)
    return ["--disable-userns"] if "--disable-userns" in told.stdout + told.stderr else []
