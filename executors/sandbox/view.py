"""What of the machine a command in the sandbox can see."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from executors.base import ExecutorError

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/mime.types")
"""All that is shown of /etc: no accounts, keys or host names."""

KERNEL_SWITCHES = tuple(
    f"/proc/{name}"
    for name in ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "mtrr", "driver", "pressure")
)
"""Shown read-only: root is allowed to write here by ownership alone, without any capability."""


@dataclass(frozen=True)
class View:
    """Folders by what may be done with them. All that is not listed does not exist in the sandbox."""

    work: Path
    """Writable, at its own path."""
    scratch: Path
    """Writable, seen as `/tmp`."""
    readable: tuple[Path, ...]
    links: tuple[Path, ...]
    """Symbolic links of the root folder, such as `/bin` on most systems."""
    hidden: tuple[Path, ...]
    """Covered by an empty folder: what lies in a readable folder and must not be seen."""


def view_of(work: Path, scratch: Path) -> View:
    """What is shown beside `work`: the system's programs and libraries and this Python with its packages.

    Raises ExecutorError for a work folder that is none or that would open what must stay shut.
    """
    work = work.resolve()
    readable = _readable()
    _check(work, readable)
    hidden = tuple(path for path in _private() if any(path.is_relative_to(root) for root in readable))
    links = tuple(path for path in map(Path, _SYSTEM) if path.is_symlink())
    return View(work, scratch.resolve(), readable, links, hidden)


def environment(work: Path, scratch: str) -> dict[str, str]:
    """The whole environment of a command: nothing is inherited."""
    return {
        "PATH": f"{Path(python()).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(work),
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(work),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def python() -> str:
    """This interpreter by the name under which the sandbox shows it, also where its folder is a symbolic link."""
    here = Path(sys.executable)
    return str(here.parent.resolve() / here.name)


def _readable() -> tuple[Path, ...]:
    pythons = map(os.path.realpath, (sys.base_prefix, sys.prefix))
    candidates = [Path(path) for path in (*_SYSTEM, *_SETTINGS, *pythons)]
    found: list[Path] = []
    for path in candidates:
        if path.exists() and not path.is_symlink() and not any(path.is_relative_to(root) for root in found):
            found.append(path)
    return tuple(found) + tuple(Path(path) for path in _SETTINGS if Path(path).is_symlink())


def _private() -> tuple[Path, ...]:
    """The user's home folder and the deployment's."""
    homes = [str(Path.home()), os.environ.get("MLOC_HOME", "")]
    return tuple(dict.fromkeys(Path(home).resolve() for home in homes if home and Path(home).is_dir()))


def _check(work: Path, readable: tuple[Path, ...]) -> None:
    if not work.is_dir():
        raise ExecutorError(f"The work folder {work} of the sandbox is no folder.", "Make it first.")
    for path in (*_private(), *readable):
        if path.is_relative_to(work):
            raise ExecutorError(
                f"The work folder {work} of the sandbox holds {path}, which must stay shut.",
                "Use an empty folder of its own.",
            )
