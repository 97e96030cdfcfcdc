"""Commands and files on the pages about deployment are real: each goes through the program that it is for."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mloc_dagster.placement.workers.declared import load_fleet
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from tests.definitions.conftest import installed
from tests.deploy.test_compose import WORKER, checked_command, compose, filled
from tests.deploy.test_images import TARGETS
from tests.docker_engine import ROOT
from tests.helm import CHART, program, run_helm

DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ELSEWHERE = {"get", "rollout", "port-forward"}
"""What kubectl asks a cluster, which is not here: it takes the command line, and then finds no server."""


def blocks(page: str, kind: str) -> list[str]:
    return [match[2] for match in _BLOCK.finditer((DOCS / page).read_text("utf-8")) if match[1] == kind]


def commands(page: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(os.path.expandvars(line.split(" > ")[0])) for line in lines]


def test_the_way_from_a_clone_to_a_task(tmp_path: Path) -> None:
    (values,) = blocks("deploy.md", "yaml")
    (tmp_path / "my-values.yaml").write_text(values)
    checks: dict[str, Callable[[list[str], Path], None]] = {
        "docker": _docker, "kubectl": _kubectl, "helm": _helm, "curl": _curl, "docker-compose": _compose, "cp": _copy,
        "pytest": lambda words, _: _there(words[1]),
    }  # fmt: skip
    found = commands("deploy.md")
    assert len(found) > 20
    for words in found:
        checks[words[0]](words, tmp_path)


def _docker(words: list[str], _folder: Path) -> None:
    if words[1] == "push":
        return
    assert words[1] == "build" and words[-1] == "."
    options = dict(zip(words[2:-1:2], words[3:-1:2], strict=True))
    assert options["--target"] in TARGETS and options["--target"] in options["-t"]
    _there(options["-f"])


def _kubectl(words: list[str], folder: Path) -> None:
    """What is made is made without a cluster; what asks one fails only because there is none."""
    kubectl, verb = program("kubectl"), next(word for word in words[1:] if word not in ("-n", "mloc"))
    config = folder / "none"
    config.write_text("")
    environment = {"PATH": os.environ["PATH"], "KUBECONFIG": str(config), "HOME": str(folder)}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [kubectl, *words[1:], *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    if verb == "create":
        done = run("--dry-run=client", "-o", "yaml")
        assert done.returncode == 0 and yaml.safe_load(done.stdout)["kind"] in ("Namespace", "Secret"), done.stderr
    elif verb == "exec":
        assert words[words.index("-c") + 1] == "web"
        assert checked_command(words[words.index("--") + 1 :])
    else:
        assert verb in _ELSEWHERE
        done = run()
        assert "refused" in done.stderr or "connection" in done.stderr.lower(), done.stderr


def _helm(words: list[str], folder: Path) -> None:
    assert words[1:3] == ["upgrade", "--install"]
    text = {"deploy/helm/mloc": str(CHART), "my-values.yaml": str(folder / "my-values.yaml")}
    done = run_helm("template", *(text.get(word, word) for word in words[3:]))
    assert done.returncode == 0, done.stderr
    documents = {one["kind"]: one for one in yaml.safe_load_all(done.stdout) if one}
    assert documents["Deployment"]["metadata"]["name"] == documents["Service"]["metadata"]["name"] == "mloc"
    image = documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "registry.example/mloc/control-plane:0.1.0", "the one that was built and pushed"
    file = folder / "workers.yaml"
    file.write_text(documents["ConfigMap"]["data"]["workers.yaml"])
    (engine,) = load_fleet(file).engines.values()
    assert engine.image == "registry.example/mloc/worker-cuda:0.1.0"


def _curl(words: list[str], _folder: Path) -> None:
    assert words[-1] == "http://127.0.0.1:3000/api/v1/tasks"
    for word in words:
        if word.startswith("@"):
            assert compile_plan(load_file(ROOT / word[1:])).steps


def _compose(words: list[str], folder: Path) -> None:
    assert words[1] == "-f" and words[2] in ("deploy/compose/compose.yaml", "deploy/compose/worker.yaml")
    rest = [word for word in words[3:] if word != "-T"]
    if rest[0] == "exec":
        assert checked_command(rest[2:])
    elif words[2].endswith("worker.yaml"):
        assert rest == ["--profile", "gpu", "up", "-d"]
        assert (
            compose(folder, "config", "-q", filled="MLOC_URL=https://mloc.example.org\n", file=WORKER).returncode == 0
        )
    else:
        assert rest == ["up", "-d"]
        assert compose(folder, "config", "-q", filled=filled()).returncode == 0


def _copy(words: list[str], _folder: Path) -> None:
    assert (ROOT / words[1]).exists() and Path(words[2]).name == ".env"


def _there(name: str) -> None:
    assert (ROOT / name).exists(), name


def test_commands_of_the_runbook() -> None:
    for words in commands("runbook.md"):
        if words[0].endswith(".sh"):
            assert os.access(ROOT / words[0], os.X_OK)
    text = (DOCS / "runbook.md").read_text("utf-8")
    for line in re.findall(r"`(mloc [a-z][^`]*)`", text):
        words = [str(CHART / "values.yaml") if word == "FILE" else word for word in line.split()]
        if words[-1] not in ("up", "list"):
            assert checked_command(words), line
    for module in re.findall(r"`python -m (benchmarks\.\w+)`", text):
        _there(module.replace(".", "/") + ".py")


def test_every_variable_is_in_the_runbook_and_there_are_no_others() -> None:
    source = "\n".join(
        path.read_text("utf-8") for folder in ("mloc_dagster", "executors") for path in (ROOT / folder).rglob("*.py")
    )
    told = set(re.findall(r"`(MLOC_[A-Z_]+)`", (DOCS / "runbook.md").read_text("utf-8")))
    assert {name for name in told if name not in source} == set()
    inner = {"MLOC_PARENT", "MLOC_REMOTE_CACHE", "MLOC_REMOTE_ROOT"}
    known = set(re.findall(r'environ(?:\.get\(|\[|\.setdefault\()"(MLOC_[A-Z_]+)"', source))
    assert known - told - inner == set(), "each variable that is read is told of"


def test_the_executor_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,), (task,) = blocks("executors.md", "python"), blocks("executors.md", "yaml")
    with installed("count", code, tmp_path / "site", monkeypatch):
        (tmp_path / "three.yaml").write_text(task)
        plan = compile_plan(load_file(tmp_path / "three.yaml"))
        assert [step.stage.spec.task_type for step in plan.steps if step.stage] == ["count"]
        names: dict[str, Any] = {}
        exec(code, names)
        context = _Context(tmp_path, {"upto": 3})
        assert names["CountExecutor"]().run(context).payload == {"ok": True, "counted": 3}
        context.stopped = True
        with pytest.raises(names["Interrupted"]):
            names["CountExecutor"]().run(context)
        assert (tmp_path / "reached.txt").read_text() == "0"


class _Context:
    """As much of a TaskContext as the example reads."""

    def __init__(self, out: Path, plugin: dict[str, Any]) -> None:
        self.out, self.stopped, self.progress, self.stop, self.spec = out, False, self, self, self
        self.plugin = plugin

    def is_set(self) -> bool:
        return self.stopped

    def update(self, *_told: object) -> None:
        return
