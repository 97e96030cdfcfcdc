"""The services of the Compose file on a real Docker Engine: PostgreSQL, web, daemon and Prometheus, to a task's result.

Images are one empty root, with this machine's programs mounted below it; everything else (commands, users, rights,
volumes, health checks, order) is as the file says. Containers share the host's network: an engine of these tests has
none of its own.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from mloc_dagster.client.client import Client
from tests.deploy.test_compose import FOLDER, compose, filled
from tests.docker_engine import NOBODY, Engine, engine, mounts

pytestmark = [pytest.mark.docker, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(600)]
_IMAGES = ("mloc/control-plane:0.1.0", "mloc/worker-cpu:0.1.0", "postgres:test", "prometheus:test")
_DATABASE = """\
test -s /var/lib/postgresql/data/PG_VERSION || {{ echo "$$POSTGRES_PASSWORD" > /tmp/password
initdb -D /var/lib/postgresql/data -U "$$POSTGRES_USER" -A scram-sha-256 --pwfile /tmp/password --no-sync
echo "CREATE DATABASE $$POSTGRES_DB" | postgres --single -D /var/lib/postgresql/data postgres; }}
exec postgres -D /var/lib/postgresql/data -p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp
"""
TASK = """\
apiVersion: mloc/v1
metadata: {name: composed, owner: alice}
spec:
  stages:
    - {name: first, taskType: echo, data: [one, two], timeoutSeconds: 60}
    - {name: second, taskType: echo, task: "${first.result.echo}"}
"""


class Stack:
    """The project's containers."""

    def __init__(self, found: Engine, folder: Path, ports: dict[str, int]) -> None:
        self.address, self.prometheus = f"http://127.0.0.1:{ports['web']}", f"http://127.0.0.1:{ports['prometheus']}"
        self.folder, self._engine = folder, found

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run docker-compose on it; returns what it printed."""
        command = ["docker-compose", "-p", "mloc", "-f", str(self.folder / "compose.yaml"), *words]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "DOCKER_HOST": self._engine.host}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def until(self, seconds: float, what: str, check: Callable[[], Any]) -> None:
        """Wait for something of a service; tells its log when it does not come."""
        until = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < until, self("logs", "--tail", "60", what)
            time.sleep(0.3)

    def state(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's container."""
        client = self._engine.client()
        (found,) = client.containers.list(all=True, filters={"label": f"com.docker.compose.service={service}"})
        state = found.attrs["State"]
        client.close()
        return {"status": state["Status"], "health": state.get("Health", {}).get("Status"), "pid": state["Pid"]}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    for program in ("docker-compose", "initdb", "prometheus"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on the PATH")
    folder = tmp_path_factory.mktemp("stack")
    ports = {name: _unused_port() for name in ("web", "postgres", "prometheus")}
    done = compose(folder, "config", filled=filled(COMPOSE_PROFILES="cpu,monitoring"))
    assert done.returncode == 0, done.stderr
    settings = yaml.safe_load(done.stdout)
    kept = ("postgres", "settings", "processes", "web", "daemon", "prometheus")
    settings["services"] = {name: _here(name, settings["services"][name], folder, ports) for name in kept}
    settings["volumes"] = {name: {} for name in ("home", "database", "metrics")}
    (folder / "metrics_token").write_text("none yet")
    settings["secrets"] = {"metrics_token": {"file": str(folder / "metrics_token")}}
    (folder / "compose.yaml").write_text(yaml.safe_dump(settings))
    with engine() as found:
        _make_images(found)
        stack = Stack(found, folder, ports)
        yield stack
        stack("--profile", "cpu", "--profile", "monitoring", "down", "-v", "-t", "30")


def _here(name: str, service: dict[str, Any], folder: Path, ports: dict[str, int]) -> dict[str, Any]:
    """A service as it is in the file, on the host's network, with this machine's programs."""
    text = yaml.safe_dump({key: value for key, value in service.items() if key not in ("ports", "networks")})
    text = text.replace("@postgres/mloc", f"@127.0.0.1:{ports['postgres']}/mloc").replace("'3000'", f"'{ports['web']}'")
    service = yaml.safe_load(text.replace("127.0.0.1:3000", f"127.0.0.1:{ports['web']}"))
    if service.get("network_mode") != "none":
        service["network_mode"] = "host"
        service.pop("hostname", None)  # it is the host's, with the host's network
    python = [] if Path(sys.base_prefix).is_relative_to("/usr") else [f"{sys.base_prefix}:{sys.base_prefix}:ro"]
    volumes = ["/usr:/usr:ro", *([*python, *mounts()] if name in ("web", "daemon") else ())]
    service["volumes"] = [*service.get("volumes", []), *volumes]
    if name == "postgres":
        binaries = Path(shutil.which("initdb") or "").resolve().parent
        service |= {"image": "postgres:test", "user": str(NOBODY)}
        service["entrypoint"] = ["sh", "-ec", f"PATH={binaries}:$$PATH\n" + _DATABASE.format(port=ports["postgres"])]
        service["environment"]["PGPORT"] = str(ports["postgres"])
        service["environment"]["PGHOST"] = "127.0.0.1"
    if name == "prometheus":
        targets = (FOLDER.parent / "monitoring" / "prometheus.yml").read_text("utf-8")
        (folder / "prometheus.yml").write_text(targets.replace("web:3000", f"127.0.0.1:{ports['web']}"))
        service["volumes"] = [
            f"{folder}/prometheus.yml:/etc/prometheus/prometheus.yml:ro" if "prometheus.yml" in one else one
            for one in service["volumes"]
        ]
        service |= {"image": "prometheus:test", "user": str(NOBODY), "entrypoint": ["prometheus"]}
        service["command"] = [*service["command"], "--storage.tsdb.path=/prometheus",
                              f"--web.listen-address=127.0.0.1:{ports['prometheus']}"]  # fmt: skip
    return service


def _make_images(found: Engine) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, owner in (("tmp", 0), ("etc", 0), ("usr", 0), ("sbin", 0), ("var/lib/mloc", NOBODY),
                            ("var/lib/postgresql/data", NOBODY), ("prometheus", NOBODY)):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.uid, entry.gid = tarfile.DIRTYPE, owner, owner
            entry.mode = 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        for name in ("bin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
        mloc = f"mloc:x:{NOBODY}:{NOBODY}::/var/lib/mloc:/bin/sh\n"
        for name, text in (("etc/passwd", f"root:x:0:0::/root:/bin/sh\n{mloc}"),
                           ("etc/group", f"root:x:0:\nmloc:x:{NOBODY}:\n")):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    client = found.client()
    path = f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    for image in _IMAGES:
        user = [f"USER {NOBODY}:{NOBODY}"] if image.startswith("mloc/") else []
        changes = [f"ENV PATH={path}", "ENV LANG=C.UTF-8", "ENV PYTHONDONTWRITEBYTECODE=1", *user]
        repository, tag = image.split(":")
        client.api.import_image_from_data(data.getvalue(), repository=repository, tag=tag, changes=changes)
    client.close()


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_from_nothing_to_a_result_and_through_a_kill(stack: Stack, tmp_path: Path) -> None:
    stack("up", "-d", "postgres", "settings", "processes", "web")
    stack("--profile", "cpu", "up", "-d", "daemon")
    stack.until(100, "web", lambda: stack.state("web")["health"] == "healthy")
    assert stack.state("postgres")["health"] == "healthy"
    token = stack("exec", "-T", "web", "mloc", "token", "create", "me", "--scope", "admin").strip()
    client = Client(stack.address, token)
    task = client.submit(TASK)
    ended = client.wait(task["id"], seconds=120)
    assert ended["status"] == "SUCCESS", "\n".join(client.logs(task["id"]))
    assert b"two" in client.download(task["id"], "second/responses.json", tmp_path / "got.json").read_bytes()

    before = stack.state("daemon")["pid"]
    os.kill(before, 9)
    stack.until(60, "daemon", lambda: stack.state("daemon")["pid"] not in (0, before))
    again = client.submit(TASK.replace("two", "three"))
    assert client.wait(again["id"], seconds=180)["status"] == "SUCCESS"

    written = stack("exec", "-T", "web", "mloc", "token", "create", "prometheus", "--scope", "read")
    (stack.folder / "metrics_token").write_text(written)
    os.chmod(stack.folder / "metrics_token", 0o644)
    stack("--profile", "monitoring", "up", "-d", "--no-deps", "prometheus")

    def scraped() -> bool:
        try:
            answer = requests.get(f"{stack.prometheus}/api/v1/query", {"query": "mloc_tasks"}, timeout=5).json()
        except requests.RequestException:
            return False
        return bool(answer["data"]["result"])

    stack.until(90, "prometheus", scraped)
    kept = json.loads(stack("exec", "-T", "daemon", "mloc", "list", "--json"))
    assert len(kept) >= 2
