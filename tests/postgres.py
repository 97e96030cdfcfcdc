"""A real PostgreSQL server on loopback, with a data folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_TOOLS = ("initdb", "pg_ctl", "createdb")


@dataclass(frozen=True)
class Server:
    """Where it listens."""

    port: int
    user: int | None

    def database(self, name: str) -> str:
        """Make a database and return its URL, with the driver named: SQLAlchemy's default one differs by version."""
        _run(self.user, "createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql+psycopg2://postgres@127.0.0.1:{self.port}/{name}"


def missing() -> str:
    """Why no server can be started here; empty when one can."""
    tools = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if tools:
        return f"no {', '.join(tools)} on the PATH"
    if os.getuid() == 0 and _other_user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return ""


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Start a server in a folder of its own, which its user may reach; both are gone at the end."""
    user = _other_user() if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="mloc-postgres-") as folder:
        if user is not None:
            os.chown(folder, user, -1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        _run(user, "initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c max_connections=200"
        _run(user, "pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield Server(port, user)
        finally:
            _run(user, "pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")


def _other_user() -> int | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    return None


def _run(user: int | None, *command: str) -> None:
    done = subprocess.run(
        command, user=user, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd="/", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
