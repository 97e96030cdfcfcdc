"""`python -m mloc_dagster.service [--host ADDRESS] [--port PORT] -w WORKSPACE`: the web server, until it is stopped."""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
from collections.abc import Sequence

import uvicorn
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.version import __version__

from mloc_dagster.definitions.instance import hold_connections, open_instance
from mloc_dagster.definitions.reloading import reloaded
from mloc_dagster.placement.queue.coordinator import QueueCoordinator
from mloc_dagster.service.connections import Bounded
from mloc_dagster.service.feeders import Feeders
from mloc_dagster.service.intake import Intake
from mloc_dagster.service.tokens import local_token
from mloc_dagster.service.web import MlocWebserver
from mloc_dagster.store.home import Home
from mloc_dagster.telemetry import logs
from mloc_dagster.telemetry.traces import Traces, Unusable
from mloc_dagster.usage.budgets import refuse_run
from mloc_dagster.usage.fill import kept_in_step
from mloc_dagster.usage.table import UsageTable

_STOP_SECONDS = 5
_SEND_SECONDS = 2.0
"""Between two looks for spans to send."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; prints the address once it is bound (`--port 0`: a free one)."""
    parser = argparse.ArgumentParser(prog="python -m mloc_dagster.service")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("-w", "--workspace", required=True)
    given = parser.parse_args(arguments)
    try:
        logs.configure("web")
        traces = Traces.of_environment("web")
    except (logs.BadFormat, Unusable) as error:
        sys.exit(_told(error))
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
        if isinstance(instance.run_coordinator, QueueCoordinator):
            instance.run_coordinator.gate = refuse_run  # of what comes by the UI and GraphQL
        intake, usage = Intake.of_instance(instance), UsageTable.of_instance(instance)
        stack.callback(intake.close)
        stack.enter_context(kept_in_step(instance, usage))
        stack.enter_context(reloaded(context, home))
        stack.enter_context(traces.sending(_SEND_SECONDS))
        app = MlocWebserver(context, home, intake, feeders, usage, traces).create_asgi_app()
        shown = f"[{given.host}]" if ":" in given.host else given.host
        logs.adopt("dagster", "dagster-webserver")
        print(f"listening on http://{shown}:{bound.getsockname()[1]}", flush=True)
        settings = uvicorn.Config(
            app,
            http=Bounded,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[bound])


def _told(error: Exception) -> int:
    """Say what is wrong with a setting; returns the exit code."""
    print(error, file=sys.stderr)
    return 2


def _bound(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512)


if __name__ == "__main__":
    main()
