"""`python -m mloc_dagster.service [--host ADDRESS] [--port PORT] -w WORKSPACE`: the web server, until it is stopped."""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
from collections.abc import Sequence

import uvicorn
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.version import __version__

from mloc_dagster.definitions.instance import hold_connections, open_instance
from mloc_dagster.service.feeders import Feeders
from mloc_dagster.service.intake import Intake
from mloc_dagster.service.tokens import local_token
from mloc_dagster.service.web import MlocWebserver
from mloc_dagster.store.home import Home

_STOP_SECONDS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; prints the address once it is bound (`--port 0`: a free one)."""
    parser = argparse.ArgumentParser(prog="python -m mloc_dagster.service")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("-w", "--workspace", required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    home = Home.current()
    with contextlib.ExitStack() as stack:
        instance = stack.enter_context(open_instance(home))
        hold_connections(instance)
        local_token(home)
        bound = stack.enter_context(_bound(given.host, given.port))
        feeders = Feeders()
        stack.callback(feeders.close)
        target = WorkspaceFileTarget([given.workspace])
        context = stack.enter_context(WorkspaceProcessContext(instance, target, version=__version__))
        intake = Intake.of_instance(instance)
        stack.callback(intake.close)
        app = MlocWebserver(context, home, intake, feeders).create_asgi_app()
        shown = f"[{given.host}]" if ":" in given.host else given.host
        print(f"listening on http://{shown}:{bound.getsockname()[1]}", flush=True)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=_STOP_SECONDS
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[bound])


def _bound(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512)


if __name__ == "__main__":
    main()
