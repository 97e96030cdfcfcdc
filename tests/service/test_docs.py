"""The commands of docs/rest.md work as they stand there, and so do its settings and its Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mloc_dagster.store.home import Home
from mloc_dagster.usage.settings import settings_of
from tests.service.conftest import ROOT, Service

PAGE = (ROOT / "docs" / "rest.md").read_text("utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [match[2] for match in _BLOCK.finditer(PAGE) if match[1] == kind]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_every_command_works(service: Service, daemon: None, tmp_path: Path) -> None:
    shutil.copy(ROOT / "task_specs" / "quickstart" / "hello.yaml", tmp_path)
    settings, *commands = blocks("bash")
    assert "export MLOC" in settings and len(commands) == 4
    environment = {**os.environ, "MLOC": service.address, "TOKEN": service.tokens["submit"]}
    script = "set -euo pipefail\n" + "".join(commands)
    done = subprocess.run(
        ["bash", "-x", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "event: end" in done.stdout and "mloc_tasks_ended_total" in done.stdout
    assert len((tmp_path / "part.json").read_bytes()) == 100


def test_the_settings_are_read(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "usage.yaml").write_text(text, "utf-8")
    found = settings_of(Home(tmp_path))
    assert found.prices.of_gpu("NVIDIA A100-SXM4-80GB") == 2.5 and len(found.budgets) == 2


def test_the_python_runs(service: Service, daemon: None, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    text = (ROOT / "task_specs" / "quickstart" / "hello.yaml").read_text("utf-8")
    names = {"token": service.tokens["submit"], "text": text}
    exec(code.replace("http://127.0.0.1:3000", service.address), names)  # the page's own
    assert "PIPELINE_SUCCESS" in capsys.readouterr().out
