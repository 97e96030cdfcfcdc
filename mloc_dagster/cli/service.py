"""`mloc up`: the web UI and the daemon together, one process to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from mloc_dagster.cli.app import OnCpu, app, check_on
from mloc_dagster.cli.screen import console, error_console, fail
from mloc_dagster.placement.local.process import end_group

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@app.command()
def up(
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port of the web UI.")] = 3000,
    host: Annotated[
        str, typer.Option(help="Address to bind to; only loopback until token auth is there.")
    ] = "127.0.0.1",
    on: OnCpu = None,
) -> None:
    """Start the web UI and the daemon (queue, sensors, monitoring); Ctrl-C stops both."""
    from mloc_dagster.cli.home import open_home
    from mloc_dagster.files.atomic import write_text
    from mloc_dagster.placement.launcher import LocalRunLauncher
    from mloc_dagster.placement.launcher.client import stop as stop_pools

    check_on(on)
    if host not in _LOOPBACK:
        fail(
            f"--host {host}: without token auth this would open the service to everyone",
            "leave --host out, and reach it through an SSH tunnel",
        )
    if _taken(host, port):
        fail(f"port {port} is in use", "name another one with --port")
    instance, home = open_home()
    if isinstance(instance.run_launcher, LocalRunLauncher):
        instance.run_launcher.warm_up()
    home.inbox.mkdir(parents=True, exist_ok=True)
    local = Path("task_specs")
    if local.is_dir():
        os.environ.setdefault("MLOC_TASK_SPECS", str(local.resolve()))
    workspace = home.dagster / "workspace.yaml"
    write_text(
        workspace,
        "load_from:\n  - python_module:\n      module_name: mloc_dagster.definitions\n      location_name: mloc\n",
    )
    commands = {
        "web": ["dagster_webserver", "-h", host, "-p", str(port), "-w", str(workspace)],
        "daemon": ["mloc_dagster.definitions.daemon", "-w", str(workspace)],
    }
    children = {name: _start(name, command, home.logs) for name, command in commands.items()}
    console.print(f"UI http://{host}:{port}, inbox {home.inbox}; Ctrl-C stops", highlight=False, soft_wrap=True)
    code = _watch(children, home.logs)
    stop_pools(home)
    raise typer.Exit(code)


def _start(name: str, command: list[str], logs: Path) -> subprocess.Popen[bytes]:
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _watch(children: dict[str, subprocess.Popen[bytes]], logs: Path) -> int:
    """Wait until a child ends or a signal comes, then end the others; runs that are going on are left alone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    try:
        while all(child.poll() is None for child in children.values()):
            time.sleep(0.3)
        for name, child in children.items():
            if child.poll() is not None:
                error_console.print(
                    f"{name} ended with exit code {child.returncode}; see {logs / f'{name}.log'}",
                    highlight=False,
                    soft_wrap=True,
                )
        code = 1
    except KeyboardInterrupt:
        console.print("stopping")
    for child in children.values():
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    for child in children.values():
        with suppress(subprocess.TimeoutExpired):
            child.wait(20)
        end_group(child)  # also what a child that was killed has left
    return code


def _taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
