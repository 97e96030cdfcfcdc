"""Limits that no single call of the kernel sets for several processes or a folder: looked at again and again."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from executors.cgroup import Cgroup
from executors.sandbox.ended import Cause
from executors.sandbox.limits import Limits


@dataclass(frozen=True)
class DiskUse:
    """Bytes on disk and entries of some folders."""

    bytes: int
    entries: int


class Watch:
    """Tells which limit the process `pid` and all below it, or the folders, have gone beyond.

    Between two looks more can be used than allowed: what one fast process writes or forks in that time. A control
    group, where there is one, sets an end to that for memory and processes.
    """

    def __init__(
        self, pid: int, folders: Sequence[Path], limits: Limits, before: DiskUse, overhead: int, group: Cgroup | None
    ) -> None:
        self._process = psutil.Process(pid)
        self._folders = folders
        self._limits = limits
        self._overhead = overhead
        self._before = before
        self._group = group

    def breach(self) -> Cause | None:
        """The limit that is exceeded now."""
        processes = self._processes()
        if len(processes) > self._limits.processes + self._overhead:
            return "processes"
        if _memory(processes, self._limits.memory_bytes) > self._limits.memory_bytes:
            return "memory"
        return self.kernel_breach() or self.disk_breach(_unlinked(processes))

    def kernel_breach(self) -> Cause | None:
        """The bound of the control group that something ran into."""
        if self._group is None:
            return None
        return "memory" if self._group.kills() else "processes" if self._group.refused_forks() else None

    def disk_breach(self, unlinked_bytes: int = 0) -> Cause | None:
        """`disk` when the folders have grown by more than is allowed, with files that have no name any more."""
        now = disk_use(self._folders)
        bytes_ = now.bytes - self._before.bytes + unlinked_bytes
        entries = now.entries - self._before.entries
        return "disk" if bytes_ > self._limits.disk_bytes or entries > self._limits.files else None

    def _processes(self) -> list[int]:
        try:
            return [self._process.pid, *(process.pid for process in self._process.children(recursive=True))]
        except psutil.Error:
            return []


def disk_use(folders: Sequence[Path]) -> DiskUse:
    """What the folders hold; links are not followed, what vanishes meanwhile does not count."""
    total = entries = 0
    waiting = [str(folder) for folder in folders]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    with suppress(OSError):  # it is gone already; the others count
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
        except OSError:
            continue
    return DiskUse(total, entries)


def _memory(pids: Sequence[int], limit: int) -> int:
    """Resident bytes of all; shared pages are shared out only where counting them in full exceeds the limit."""
    resident = sum(_resident(pid) for pid in pids)
    return resident if resident <= limit else sum(_proportional(pid) for pid in pids)


def _unlinked(pids: Sequence[int]) -> int:
    """Bytes of open files without a name: deleted ones, and memory that is used as a file (memfd_create)."""
    sizes: dict[tuple[int, int], int] = {}
    for pid in pids:
        for descriptor in _descriptors(pid):
            with suppress(OSError):
                found = os.stat(descriptor)
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                    sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def _descriptors(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # it has ended
        return []


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return _resident(pid)
    return 0
