"""The Compose file: read by docker-compose itself, without default passwords, on loopback, with commands that exist."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mloc_dagster.cli.app import app
from mloc_dagster.definitions.instance import DAGSTER_YAML
from tests.docker_engine import ROOT

FOLDER = ROOT / "deploy" / "compose"
WORKER = FOLDER / "worker.yaml"
TEXT = (FOLDER / "compose.yaml").read_text("utf-8")
EXAMPLE = (FOLDER / ".env.example").read_text("utf-8")
PASSWORDS = ("POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY", "GRAFANA_PASSWORD")
OURS = {"processes", "settings", "web", "daemon", "daemon-gpu"}
PROFILES = {"daemon": "cpu", "daemon-gpu": "gpu", "minio": "s3", "bucket": "s3", "prometheus": "monitoring",
            "grafana": "monitoring", "loki": "monitoring", "promtail": "monitoring"}  # fmt: skip
NO_CHECK = {"settings": "ends", "bucket": "ends", "processes": "sleeps", "promtail": "its image has no client"}


def compose(
    folder: Path, *arguments: str, filled: str, file: Path = FOLDER / "compose.yaml"
) -> subprocess.CompletedProcess[str]:
    """Run docker-compose with an environment of its own."""
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose: apt-get install docker-compose")
    (folder / "env").write_text(filled)
    command = ["docker-compose", "-f", str(file), "--env-file", str(folder / "env"), *arguments]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def filled(**changes: str) -> str:
    values = dict.fromkeys(PASSWORDS, "x1y2z3") | changes
    return re.sub(r"^(\w+)=$", lambda match: f"{match[1]}={values.get(match[1], '')}", EXAMPLE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All services, as docker-compose resolves them with the example filled in."""
    done = compose(tmp_path_factory.mktemp("compose"), "config", filled=filled())
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["services"]


def test_profiles(services: dict[str, dict[str, Any]]) -> None:
    assert {name: one["profiles"][0] for name, one in services.items() if "profiles" in one} == PROFILES
    assert set(services) - set(PROFILES) == {"postgres", "processes", "settings", "web"}


@pytest.mark.parametrize("missing", PASSWORDS)
def test_there_are_no_default_passwords(missing: str, tmp_path: Path) -> None:
    done = compose(tmp_path, "config", filled=filled(**{missing: ""}))
    assert done.returncode != 0 and "any long random text" in done.stderr


def test_every_variable_is_explained() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT)) | set(re.findall(r"^    ([A-Z_]+):$", TEXT, re.MULTILINE))
    told = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", EXAMPLE, re.MULTILINE))
    assert told - used == {"COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME"} and used <= told


def test_the_example_shows_what_holds_without_it() -> None:
    for name, value in re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT):
        assert f"# {name}={value}\n" in EXAMPLE, name


def test_ports_are_on_loopback(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for one in services.values() for port in one.get("ports", [])]
    assert len(ports) >= 5
    assert all(str(port).startswith("127.0.0.1:") for port in ports), ports


def test_health_checks(services: dict[str, dict[str, Any]]) -> None:
    without = {
        name
        for name, one in services.items()
        if "test" not in one.get("healthcheck", {}) or one["healthcheck"]["test"] == ["NONE"]
    }
    assert without == set(NO_CHECK)


def test_images_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    for name, one in services.items():
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", one["image"]), name


def test_our_containers_have_few_rights(services: dict[str, dict[str, Any]]) -> None:
    for name in OURS:
        one = services[name]
        assert one["cap_drop"] == ["ALL"] and one["read_only"] is True, name
        assert one["security_opt"] == ["no-new-privileges:true"], name
    assert not any("docker.sock" in str(one) or one.get("privileged") for one in services.values())


def test_web_and_daemons_are_one_machine(services: dict[str, dict[str, Any]]) -> None:
    """They find each other's processes by number, and the ledger knows the machine by its name."""
    for name in ("web", "daemon", "daemon-gpu"):
        one = services[name]
        assert (one["pid"], one["hostname"]) == ("service:processes", "mloc")
        assert "home:/var/lib/mloc:rw" in one["volumes"]
    assert services["processes"]["init"] is True


def test_our_commands_exist(services: dict[str, dict[str, Any]]) -> None:
    """Each command line goes through the parser of the command, up to where it would begin."""
    checked = [name for name in OURS if checked_command(services[name]["command"])]
    assert sorted(checked) == ["daemon", "daemon-gpu", "web"]


def checked_command(words: list[str]) -> bool:
    """Parse a command line of ours; returns whether it is one."""
    if words[0] == "mloc":
        group: Any = typer.main.get_command(app)
        rest = [word.replace("/etc/mloc", str(FOLDER)) for word in words[1:]]
        group.commands[rest[0]].make_context(rest[0], rest[1:])
        return True
    if words[:2] == ["python", "-m"]:
        found = importlib.import_module(words[2])
        source = Path(found.__path__[0], "__main__.py").read_text("utf-8")
        assert all(f'"{word}"' in source for word in words[3:] if word.startswith("-"))
        return True
    assert words[0] in ("sh", "sleep"), words
    return False


def test_settings_are_those_of_any_home() -> None:
    ours = yaml.safe_load((FOLDER / "dagster.yaml").read_text("utf-8"))
    assert ours.keys() == yaml.safe_load(DAGSTER_YAML).keys()
    assert ours["run_launcher"] == yaml.safe_load(DAGSTER_YAML)["run_launcher"]


def test_what_is_mounted_is_there(services: dict[str, dict[str, Any]]) -> None:
    mounted = {str(one).split(":")[0] for service in services.values() for one in service.get("volumes", [])}
    files = {Path(name) for name in mounted if name.startswith("/")}
    assert len(files) >= 8 and [str(file) for file in files if not file.exists()] == []


def test_a_worker_elsewhere_needs_an_address_and_has_few_rights(tmp_path: Path) -> None:
    missing = compose(tmp_path, "config", filled="", file=WORKER)
    assert missing.returncode != 0 and "the address of the control plane" in missing.stderr
    done = compose(tmp_path, "config", filled="MLOC_URL=https://mloc.example.org\n", file=WORKER)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert {name: one["profiles"] for name, one in services.items()} == {"worker": ["cpu"], "worker-gpu": ["gpu"]}
    for one in services.values():
        assert "ports" not in one and one["cap_drop"] == ["ALL"] and one["read_only"] is True
        assert re.fullmatch(r"mloc/worker-(cpu|cuda):\d+\.\d+\.\d+", one["image"])
        words = [str(tmp_path / "env") if word.startswith("/run/secrets") else word for word in one["command"]]
        assert checked_command(words) and "https://mloc.example.org" in words
