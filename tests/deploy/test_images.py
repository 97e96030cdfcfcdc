"""The Dockerfile: pinned, not root, with health checks; and Docker's own parser takes it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker_engine import ROOT, engine

FOLDER = ROOT / "deploy" / "docker"
TEXT = (FOLDER / "Dockerfile").read_text("utf-8")
TARGETS = ("control-plane", "worker-cpu", "worker-cuda")


def instructions() -> list[tuple[str, str]]:
    """Instructions and what follows them, comments gone and lines joined."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name.upper(), rest) for name, rest in found]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []  # of what comes before the first FROM
    for name, rest in instructions():
        if name == "FROM":
            current = found.setdefault(rest.split(" AS ")[1], [])
        else:
            current.append((name, rest))
    return found


def test_base_images_are_pinned() -> None:
    (base,) = [rest for name, rest in instructions() if name == "ARG" and rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=\S+:\d+\.\d+\.\d+-[\w-]+", base), "a full version, not latest"
    own = set(stages())
    for name, rest in instructions():
        if name == "FROM":
            assert rest.split(" AS ")[0] in {"${BASE}", *own}


@pytest.mark.parametrize("target", TARGETS)
def test_images_are_not_root_and_tell_their_health(target: str) -> None:
    stage = stages()[target]
    users = [rest for name, rest in stage if name == "USER"]
    assert users == ["1000:1000"], "numbers: runAsNonRoot cannot look a name up"
    after = [name for name, _ in stage[[name for name, _ in stage].index("USER") :]]
    assert {"HEALTHCHECK", "CMD"} <= set(after) and "RUN" not in after
    assert not any(name == "RUN" for name, _ in stage), "one COPY is one layer"


def test_everything_installed_is_in_the_lock() -> None:
    """Every pip install is held to the lock, names versions by it, or installs our own code without others."""
    environment = " ".join(rest for name, rest in instructions() if name == "ENV")
    assert "PIP_CONSTRAINT=/src/constraints.txt" in environment
    installs = [one for name, rest in instructions() if name == "RUN" for one in re.findall(r"pip install [^&]+", rest)]
    assert len(installs) >= 6
    allowed = r"pip install (\$\{TORCH_INDEX[^}]*\}[^}]*\}\S* |--no-deps )*(-r [\w-]+\.txt|\.|\"\$\{?\(?.*torch.*)\s*"
    assert [one for one in installs if not re.fullmatch(allowed, one)] == []
    locked = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()}
    for line in requirements("inference", "training", "rag", "agent", "qdrant", "postgres", "k8s", "docker", "s3"):
        assert re.split(r"[\[<>=!~ ]", line)[0].lower() in locked, line
    assert {"hatchling", "pathspec", "trove-classifiers"} <= locked, "what builds the wheel"


def requirements(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "requirements.py"), *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_extras_of_extras_are_resolved() -> None:
    found = requirements("agent")
    assert {"dagster>=1.13,<1.14", "mcp>=2.3,<3", "chromadb>=1.5"} <= set(found)
    assert any(one.startswith("torch") for one in found) and not any("mloc-dagster" in one for one in found)
    assert not any(one.startswith(("torch", "transformers")) for one in requirements("postgres", "k8s", "docker", "s3"))


def test_the_lock_of_the_cuda_image() -> None:
    found = requirements("--lock", "constraints.txt", str(FOLDER / "constraints-cuda.txt"))
    assert [one for one in found if one.startswith("torch==")] == ["torch==2.13.0"]
    assert "vllm==0.32.0" in found and "dagster==1.13.27" in found
    assert not any(one.endswith("+cpu") for one in found)


def test_what_is_copied_is_sent_and_nothing_else(tmp_path: Path) -> None:
    """`.dockerignore` lets through what COPY names: no homes, no secrets, no tests."""
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert ignored[0] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for word in rest.split()[:-1]
    }
    assert copied == sent and all((ROOT / name).exists() for name in sent)


@pytest.mark.docker
def test_dockers_own_parser_takes_it() -> None:
    """The engine reads the whole file, and then finds that there is no such target."""
    with engine() as found:
        command = [
            "docker",
            "-H",
            found.host,
            "build",
            "-q",
            "-f",
            str(FOLDER / "Dockerfile"),
            "--target",
            "nothing",
            ".",
        ]
        environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "target" in done.stderr and "nothing" in done.stderr, done.stderr
    assert "unknown instruction" not in done.stderr and "parse error" not in done.stderr


def test_build_arguments_for_mirrors() -> None:
    names = {rest.partition("=")[0] for name, rest in instructions() if name == "ARG"}
    assert {"BASE", "PIP_INDEX_URL", "TORCH_INDEX", "APT_MIRROR", "SYSTEM_PACKAGES"} <= names


def test_the_main_programs_are_there() -> None:
    commands = [rest for name, rest in instructions() if name == "CMD"]
    assert commands == ['["mloc", "up", "--host", "0.0.0.0"]', '["mloc", "daemon"]', '["mloc", "daemon"]']
