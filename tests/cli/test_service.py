"""`mloc up`: the web UI and the daemon, one command to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import requests

from tests.cli.conftest import ROOT, Mloc, processes_of, write
from tests.delivery.test_http import unused_port
from tests.waiting import wait_for


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).ok
    except requests.RequestException:  # a busy machine is slow to answer
        return False


def _readme_commands(folder: Path, port: int) -> list[str]:
    """Run the curl commands of the README on a task file of their name; returns the first key of each answer."""
    write(folder / "my_task.yaml")
    (block,) = re.findall(r"^```bash\n(T=.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    script = block.replace(":3000/", f":{port}/").replace("curl ", "curl -sS --fail-with-body ")
    lines = [line if line.startswith("T=") else f"{line}; echo" for line in script.splitlines()]
    done = subprocess.run(["bash", "-ec", "\n".join(lines)], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return [next(iter(json.loads(line))) for line in done.stdout.splitlines()]


def test_it_serves_what_was_run_and_stops_as_a_whole(mloc: Mloc) -> None:
    write(mloc.folder / "two.yaml")
    assert mloc("run", "two.yaml").code == 0
    port = unused_port()
    process = mloc.start("up", "--port", str(port))
    try:
        wait_for(lambda: process.poll() is not None or answers(port), "the web UI", 90)
        query = {"query": "{runsOrError { ... on Runs { results { status } } }}"}
        assert requests.post(f"http://127.0.0.1:{port}/graphql", json=query, timeout=30).status_code == 401
        opened = {"Authorization": f"Bearer {(mloc.home.root / 'token').read_text().strip()}"}
        found = requests.post(f"http://127.0.0.1:{port}/graphql", json=query, headers=opened, timeout=30).json()
        assert found["data"]["runsOrError"]["results"] == [{"status": "SUCCESS"}]
        assert _readme_commands(mloc.folder, port) == ["dry_run", "ok", "tasks"]
        second = mloc("up", "--port", str(port))
        assert second.code == 2 and f"port {port} is in use" in second.errors
        os.kill(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and "stopping" in out
        assert f"UI http://127.0.0.1:{port} (" in out and f"REST http://127.0.0.1:{port}/api/v1/tasks" in out
        assert "code=" not in out, "no terminal: a log would keep it"
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
        web = next(p for p in processes_of(mloc.folder) if "mloc_dagster.service" in p.cmdline())
        web.kill()
        begun = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1 and "web ended with exit code -9; see " in errors and "web.log" in errors
        assert time.monotonic() - begun < 40
    finally:
        process.kill()
    wait_for(lambda: not processes_of(mloc.folder), "the daemon to end", 30)


def test_killed_it_takes_its_parts_along(mloc: Mloc) -> None:
    port = unused_port()
    process = mloc.start("up", "--port", str(port))

    def parts() -> list[str]:
        commands = []
        for part in processes_of(mloc.folder):
            with suppress(psutil.Error):  # it ended meanwhile
                commands.append(" ".join(part.cmdline()))
        return [one for one in commands if "mloc_dagster.service" in one or "definitions.daemon" in one]

    try:
        wait_for(lambda: answers(port), "the web UI", 90)
        assert len(parts()) >= 2
    finally:
        process.kill()
    process.communicate()
    wait_for(lambda: not parts(), "the web UI and the daemon to end", 60)


def test_beyond_loopback_it_says_what_is_missing(mloc: Mloc) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        answer = mloc("up", "--host", "0.0.0.0", "--port", str(taken.getsockname()[1]))
    assert answer.code == 2 and "put a proxy with TLS in front" in answer.errors
    assert "is in use" in answer.errors and not mloc.home.root.exists()


def test_tokens_are_made_shown_and_revoked(mloc: Mloc) -> None:
    written = mloc.here("token", "create", "ci", "--scope", "read").out.strip()
    assert re.fullmatch(r"mloc_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", written)
    second = mloc.here("token", "create", "ci")
    assert second.code == 2 and "there is a token 'ci' already" in second.errors
    bad = mloc.here("token", "create", "x", "--scope", "root")
    assert bad.code == 2 and "there are read, submit, admin" in bad.errors
    listed = mloc.here("token", "list", "--json").out
    assert [(one["name"], one["scope"]) for one in json.loads(listed)] == [("ci", "read")]
    assert written.split("_", 2)[2] not in listed
    assert mloc.here("token", "url").out.startswith("http://127.0.0.1:3000/login?code=")
    assert mloc.here("token", "revoke", "ci").code == 0
    gone = mloc.here("token", "revoke", "ci")
    assert gone.code == 2 and "see: mloc token list" in gone.errors
