"""Trying a backend before it is relied on."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from executors.sandbox.view import View, environment, python, view_of


def tried(command: Callable[[View, Sequence[str]], list[str]]) -> str | None:
    """Run nothing in the sandbox; returns why that failed, None when it worked."""
    with tempfile.TemporaryDirectory(prefix="mloc-sandbox-") as folder:
        work, scratch = Path(folder, "work"), Path(folder, "tmp")
        work.mkdir()
        scratch.mkdir()
        line = command(view_of(work, scratch), [python(), "-I", "-S", "-c", ""])
        try:
            ended = subprocess.run(
                line, env=environment(work, "/tmp"), capture_output=True, text=True, errors="replace", timeout=30
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    lines = ended.stderr.strip().splitlines() or [f"it ended with exit code {ended.returncode}"]
    return lines[-1] if ended.returncode else None
