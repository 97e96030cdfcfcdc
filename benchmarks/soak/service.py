"""A home of its own with `mloc up` in it, which is started again whenever it ends, and the processes of that home."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from mloc_dagster.placement.queue.signals import daemon_is_there
from mloc_dagster.store.home import Home

ROOT = Path(__file__).absolute().parents[2]
_COMMAND = [sys.executable, "-c", "from mloc_dagster.cli import main; main()", "up", "--on", "cpu"]
_WORKERS = "workers:\n  - {name: here, cpu: 4, memory: 8Gi}\n"
_STOP_SECONDS = 60.0
_CLEAN_SECONDS = 3.0


class Service:
    """`mloc up`, as a supervisor such as systemd keeps it up."""

    def __init__(self, folder: Path, site: Path, journal: Path) -> None:
        self.home = Home(folder / "home")
        self.home.root.mkdir(parents=True)
        (self.home.root / "workers.yaml").write_text(_WORKERS)
        (folder / "task_specs").mkdir()
        self._log, self._port, self._folder = folder / "up.log", _free_port(), folder
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._set_environment(folder, site, journal)

    def _set_environment(self, folder: Path, site: Path, journal: Path) -> None:
        """That of this process too: it submits tasks as `mloc submit` does."""
        sys.path.insert(0, str(site))
        os.environ |= {
            "MLOC_HOME": str(self.home.root),
            "DAGSTER_HOME": str(self.home.dagster),
            "MLOC_TASK_SPECS": str(folder / "task_specs"),
            "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
            "SOAK_JOURNAL": str(journal),
            "OMP_NUM_THREADS": "1",
        }

    def keep_up(self) -> None:
        """Start it unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self._note(f"start {self.starts + 1}")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_COMMAND, "--port", str(self._port)],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.starts += 1

    def come_and_go(self) -> None:
        """Start it once more until its daemon has had time to clean up after those that were killed."""
        deadline = time.monotonic() + _STOP_SECONDS
        while not daemon_is_there(self.home.dagster) and time.monotonic() < deadline:
            self.keep_up()
            time.sleep(0.2)
        time.sleep(_CLEAN_SECONDS)

    def stop(self) -> Iterator[str]:
        """Stop it and wait until no process of the home is left; yields what did not end by itself, and kills it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
            self._note(f"stopped with exit code {self._process.poll()}")
        deadline = time.monotonic() + _STOP_SECONDS
        while (left := processes_of(self.home)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with suppress(psutil.Error):
                yield f"process {process.pid} is left: {' '.join(process.cmdline())[:200]}"
                process.kill()
        if self._process is not None:
            self._process.wait()

    def _note(self, what: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {what}\n")


def processes_of(home: Home) -> list[psutil.Process]:
    """Processes that were started with this home, zombies and this process left out.

    A stage that started warm has its home in its command line alone; the process that it was forked from has none.
    """
    wanted, found = f"MLOC_HOME={home.root}".encode(), []
    stage = f"{home.work}/".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = wanted in (folder / "environ").read_bytes().split(b"\0")
            forked = any(part.startswith(stage) for part in (folder / "cmdline").read_bytes().split(b"\0"))
            if int(folder.name) != os.getpid() and (ours or forked):
                found.append(psutil.Process(int(folder.name)))
        except (OSError, psutil.Error):
            continue
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
