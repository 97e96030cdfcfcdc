"""`mloc up`: the web UI and the daemon, one command to stop."""

from __future__ import annotations

import os
import signal
import socket
import time

import requests

from tests.cli.conftest import Mloc, processes_of, write
from tests.definitions.conftest import wait_for
from tests.delivery.test_http import unused_port


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/server_info", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_it_serves_what_was_run_and_stops_as_a_whole(mloc: Mloc) -> None:
    write(mloc.folder / "two.yaml")
    assert mloc("run", "two.yaml").code == 0
    port = unused_port()
    process = mloc.start("up", "--port", str(port))
    try:
        wait_for(lambda: process.poll() is not None or answers(port), "the web UI", 90)
        query = {"query": "{runsOrError { ... on Runs { results { status } } }}"}
        found = requests.post(f"http://127.0.0.1:{port}/graphql", json=query, timeout=30).json()
        assert found["data"]["runsOrError"]["results"] == [{"status": "SUCCESS"}]
        second = mloc("up", "--port", str(port))
        assert second.code == 2 and f"port {port} is in use" in second.errors
        os.kill(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and f"UI http://127.0.0.1:{port}, inbox" in out and "stopping" in out
        assert "Traceback" not in errors
    finally:
        process.kill()
    wait_for(lambda: not processes_of(mloc.folder), "the web UI and the daemon to end", 30)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_it_ends_when_one_of_its_parts_does(mloc: Mloc) -> None:
    port = unused_port()
    process = mloc.start("up", "--port", str(port))
    try:
        wait_for(lambda: answers(port), "the web UI", 90)
        web = next(p for p in processes_of(mloc.folder) if "dagster_webserver" in p.cmdline())
        web.kill()
        begun = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1 and "web ended with exit code -9; see " in errors and "web.log" in errors
        assert time.monotonic() - begun < 40
    finally:
        process.kill()
    wait_for(lambda: not processes_of(mloc.folder), "the daemon to end", 30)


def test_it_opens_to_nobody_else(mloc: Mloc) -> None:
    answer = mloc("up", "--host", "0.0.0.0")
    assert answer.code == 2 and "without token auth this would open the service to everyone" in answer.errors
    assert "SSH tunnel" in answer.errors and not mloc.home.root.exists()
