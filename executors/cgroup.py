"""A control group of the kernel around one piece of work: bounds that nothing inside can pass, and what hit them.

Version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html) or 1, where this user may make a group: as root of a
host, or below a service that systemd delegates. Elsewhere, as in most containers, there is none.
"""

from __future__ import annotations

import os
import re
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "mloc"
_NEEDED = ("memory", "pids")
_END_SECONDS = 5.0
_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1"; shift; done 2>/dev/null; shift; exec "$@"'
"""Where the kernel refuses the entry, work goes on without a bound, as where no group can be made."""


@dataclass(frozen=True)
class Cgroup:
    """A group of processes; one folder with version 2, one for each controller with version 1."""

    memory: Path
    pids: Path

    @classmethod
    def make(cls, *, memory_bytes: int | None = None, processes: int | None = None) -> Cgroup | None:
        """Make a group with these bounds; None where this user cannot. A thread counts as a process."""
        name = f"{_PREFIX}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        places = _version_2() or _version_1()
        if places is None:
            return None
        _sweep(places)
        group = cls(*(place / name for place in places))
        try:
            for folder in group._folders():
                folder.mkdir()
            group._bound(memory_bytes, processes)
        except OSError:
            group.end()
            return None
        return group

    def entering(self, command: Sequence[str]) -> list[str]:
        """The command line of a process that enters the group and then becomes `command`."""
        return ["/bin/sh", "-c", _ENTER, "sh", *self.doors, "--", *command]

    @property
    def doors(self) -> tuple[str, ...]:
        """The files that a process enters the group by (`enter`)."""
        return tuple(str(folder / "cgroup.procs") for folder in self._folders())

    def kills(self) -> int:
        """Processes that the kernel ended because the memory was used up."""
        name = "memory.events" if self._unified else "memory.oom_control"
        return _count(self.memory / name, "oom_kill")

    def refused_forks(self) -> int:
        """How often a process could not be started because there were too many."""
        return _count(self.pids / "pids.events", "max")

    def end(self) -> None:
        """Kill all that is in the group, and remove it; what does not die within 5 s stays, as does the group."""
        with suppress(OSError):
            (self.pids / "pids.max").write_text("0")
        deadline = time.monotonic() + _END_SECONDS
        while not self._removed() and time.monotonic() < deadline:
            self._kill()
            time.sleep(0.01)

    @property
    def _unified(self) -> bool:
        return self.memory == self.pids

    def _folders(self) -> list[Path]:
        return list(dict.fromkeys([self.memory, self.pids]))

    def _bound(self, memory_bytes: int | None, processes: int | None) -> None:
        if processes is not None:
            (self.pids / "pids.max").write_text(str(processes))
        if memory_bytes is None:
            return
        if not self._unified:
            (self.memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
            return
        (self.memory / "memory.max").write_text(str(memory_bytes))
        (self.memory / "memory.oom.group").write_text("1")
        with suppress(OSError):  # a kernel without swap has no such file
            (self.memory / "memory.swap.max").write_text("0")

    def _kill(self) -> None:
        for folder in self._folders():
            with suppress(OSError):
                for pid in (folder / "cgroup.procs").read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)

    def _removed(self) -> bool:
        for folder in self._folders():
            with suppress(OSError):
                folder.rmdir()
        return not any(folder.exists() for folder in self._folders())


def enter(door: str) -> None:
    """Have this process enter a group, where the kernel lets it."""
    with suppress(OSError):
        Path(door).write_text(str(os.getpid()))


def _version_2() -> tuple[Path, Path] | None:
    """The nearest place above this process whose groups get memory and process bounds, twice: it has both."""
    for mount in _mounts("cgroup2", ""):
        own = mount / _own("").lstrip("/")
        for place in [own, *own.parents]:
            if not place.is_relative_to(mount):
                break
            with suppress(OSError):
                controllers = (place / "cgroup.subtree_control").read_text().split()
                if set(_NEEDED) <= set(controllers) and os.access(place, os.W_OK):
                    return place, place
    return None


def _version_1() -> tuple[Path, Path] | None:
    """The groups of this process, by controller."""
    places = [
        place
        for controller in _NEEDED
        for mount in _mounts("cgroup", controller)[:1]
        for place in [mount / _own(controller).lstrip("/")]
        if os.access(place, os.W_OK)
    ]
    return (places[0], places[1]) if len(places) == len(_NEEDED) else None


def _mounts(kind: str, controller: str) -> list[Path]:
    found = []
    for line in _lines(Path("/proc/self/mounts")):
        _, place, type_, options, *_ = line.split()
        if type_ == kind and (not controller or controller in options.split(",")):
            found.append(Path(place))
    return found


def _own(controller: str) -> str:
    """The group of this process, as a path below the mount."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and bool(controller) == bool(controllers):
            return path
    return "/"


def _sweep(places: tuple[Path, ...]) -> None:
    """Remove empty groups of processes that were killed before they could do so."""
    for place in set(places):
        for folder in place.glob(f"{_PREFIX}-*"):
            found = re.fullmatch(rf"{_PREFIX}-(\d+)-\w+", folder.name)
            if found and not Path(f"/proc/{found[1]}").exists():
                with suppress(OSError):
                    folder.rmdir()


def _count(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _lines(path) if line.split()[0] == name), 0)


def _lines(path: Path) -> Iterator[str]:
    with suppress(OSError):
        yield from path.read_text().splitlines()
