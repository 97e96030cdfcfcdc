"""`mloc up`: the web UI and the daemon together, one process to stop; `mloc serve`: the web UI alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from executors.group import end_group
from executors.parent import end_with_parent
from mloc_dagster.cli.app import LogFormat, OnCpu, app, check_log_format, check_on
from mloc_dagster.cli.screen import console, error_console, fail

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from mloc_dagster.store.home import Home

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_LAST_SECONDS = 30.0
"""How long what a part of the service has started may take to end."""


Port = Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port of the web UI.")]
Host = Annotated[str, typer.Option(help="Address to bind to; beyond loopback, put a proxy with TLS in front.")]


@app.command()
def up(port: Port = 3000, host: Host = "127.0.0.1", on: OnCpu = None, log_format: LogFormat = None) -> None:
    """Start the service (web UI, GraphQL, REST) and the daemon (queue, sensors, monitoring); Ctrl-C stops both.

    A token opens the service; the address that is printed logs one browser in.
    """
    from mloc_dagster.placement.launcher import LocalRunLauncher
    from mloc_dagster.placement.launcher.client import stop as stop_pools

    instance, home, workspace = _prepared(port, host, on, log_format)
    if isinstance(instance.run_launcher, LocalRunLauncher):
        instance.run_launcher.warm_up()
    commands = {
        "web": ["mloc_dagster.service", "--host", host, "--port", str(port), "-w", str(workspace)],
        "daemon": ["mloc_dagster.definitions.daemon", "-w", str(workspace)],
    }
    children = {name: _start(name, command, home.logs) for name, command in commands.items()}
    _tell(home, host, port)
    ended = _watch(children, home.logs)
    stop_pools(home)
    raise typer.Exit(ended)


@app.command()
def serve(port: Port = 3000, host: Host = "127.0.0.1", on: OnCpu = None, log_format: LogFormat = None) -> None:
    """Start the service alone (web UI, GraphQL, REST), for where `mloc daemon` runs as a unit of its own.

    It logs on standard error. Tasks that come wait for the daemon, unless dagster.yaml says otherwise.
    """
    from mloc_dagster.service.__main__ import main

    instance, home, workspace = _prepared(port, host, on, log_format)
    instance.dispose()
    _tell(home, host, port)
    main(["--host", host, "--port", str(port), "-w", str(workspace)])


def _prepared(port: int, host: str, on: str | None, log_format: str | None) -> tuple[DagsterInstance, Home, Path]:
    """Check what was asked for, open the home, and write the workspace file that the service loads."""
    from mloc_dagster.cli.home import open_home
    from mloc_dagster.files.atomic import write_text

    check_on(on)
    check_log_format(log_format)
    if host not in LOOPBACK:
        told = f"--host {host}: who reads the traffic reads the tokens; put a proxy with TLS in front of the port"
        error_console.print(told, style="yellow", highlight=False, soft_wrap=True)
    if _taken(host, port):
        fail(f"port {port} is in use", "name another one with --port")
    instance, home = open_home()
    home.inbox.mkdir(parents=True, exist_ok=True)
    local = Path("task_specs")
    if local.is_dir():
        os.environ.setdefault("MLOC_TASK_SPECS", str(local.resolve()))
    workspace = home.dagster / "workspace.yaml"
    write_text(
        workspace,
        "load_from:\n  - python_module:\n      module_name: mloc_dagster.definitions\n      location_name: mloc\n",
    )
    return instance, home, workspace


def _tell(home: Home, host: str, port: int) -> None:
    """Say where the service is, and how one gets in: with a code at a terminal, which a log must not keep."""
    from mloc_dagster.service.tokens import Tokens, local_file, local_token

    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else f'[{host}]' if ':' in host else host}:{port}"
    token = local_token(home)
    if console.is_terminal:
        code = Tokens(home).new_code(token.id)
        told = f"UI {address}/login?code={code} (once, within the hour; another one: mloc token url)\n"
    else:
        told = f"UI {address} (an address that logs a browser in: mloc token url)\n"
    told += f"REST {address}/api/v1/tasks, token in {local_file(home)}; inbox {home.inbox}; Ctrl-C stops"
    console.print(told, highlight=False, soft_wrap=True, markup=False)


def _start(name: str, command: list[str], logs: Path) -> subprocess.Popen[bytes]:
    logs.mkdir(parents=True, exist_ok=True)
    parent = os.getpid()
    with (logs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM, parent),  # else a next `mloc up` finds the port taken
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
        end_group(child, _LAST_SECONDS)  # also what a child that was killed has left
    return code


def _taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
