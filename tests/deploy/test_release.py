"""`make dist`: a wheel that works by itself, checksums that hold, and nothing that the changelog does not tell of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from mloc_dagster import __version__
from tests.docker_engine import ROOT

NEEDED = ("mloc_dagster", "executors", "task_specs", "deploy", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md",
          "constraints.txt")  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a release is made of."""
    for name in NEEDED:
        source, target = ROOT / name, tmp_path / "tree" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".mloc"))
        else:
            shutil.copy(source, target)
    return tmp_path / "tree"


def release(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_CONSTRAINT": str(tree / "constraints.txt")}
    command = ["bash", str(tree / "deploy" / "release.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("build")
    done = release(tree)
    if "No matching distribution" in done.stderr + done.stdout or "ConnectionError" in done.stderr:
        pytest.skip("no package index to build with")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    dist = tree / "dist"
    names = {f"mloc_dagster-{__version__}-py3-none-any.whl", f"mloc_dagster-{__version__}.tar.gz", "SHA256SUMS"}
    assert {path.name for path in dist.iterdir()} == names
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=dist).returncode == 0
    mloc = installed(dist / f"mloc_dagster-{__version__}-py3-none-any.whl", tmp_path / "empty")
    assert __version__ in run(mloc, tmp_path, "--version")
    run(mloc, tmp_path, "init", "echo")
    (made,) = tmp_path.glob("*.yaml")
    run(mloc, tmp_path, "validate", made.name)


def installed(wheel: Path, folder: Path) -> Path:
    """An environment with the wheel; what the wheel needs is looked up in this one's packages, behind its own."""
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", "--no-deps"]
    subprocess.run([*command, "--no-index", str(wheel)], check=True, timeout=120)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = [str(folder / "bin" / "python"), "-c", "import mloc_dagster; print(mloc_dagster.__file__)"]
    found = subprocess.run(where, cwd=folder, env=clean(), capture_output=True, text=True).stdout
    assert str(site) in found, "the wheel's code, not this checkout's"
    return folder / "bin" / "mloc"


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("MLOC_", "PYTHON", "DAGSTER"))}


def run(mloc: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run([str(mloc), *arguments], cwd=folder, env=clean(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_version_that_the_changelog_does_not_know_is_refused(tree: Path) -> None:
    changelog = tree / "CHANGELOG.md"
    changelog.write_text(changelog.read_text("utf-8").replace("## [Unreleased]", "## Soon"), "utf-8")
    done = release(tree)
    assert done.returncode == 2 and f"has no section [{__version__}]" in done.stderr
    assert not (tree / "dist").exists()


def test_a_chart_of_another_version_is_refused(tree: Path) -> None:
    chart = tree / "deploy" / "helm" / "mloc" / "Chart.yaml"
    chart.write_text(chart.read_text("utf-8").replace(f"appVersion: {__version__}", "appVersion: 9.9.9"), "utf-8")
    done = release(tree)
    assert done.returncode == 2 and "another version" in done.stderr


def test_a_final_release_needs_its_own_section(tree: Path) -> None:
    done = release(tree, "--final")
    assert done.returncode == 2 and f"## [{__version__}] - " in done.stderr
