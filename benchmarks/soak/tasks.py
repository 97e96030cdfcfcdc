"""The tasks of the soak: light and heavy stages, some side by side, some that fail by their user's fault."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mloc_dagster.spec.base import Json

FAULT = "the user asked for what cannot be"
BYTES = 300_000
"""Size of the file that a heavy stage writes bit by bit: the task's name (10 bytes with its line end), repeated."""
_EXECUTOR = f'''
"""A stage that takes its time, has a child process, and writes a file and its journal bit by bit."""
import fcntl, hashlib, os, subprocess, sys, time
from pathlib import Path
from pydantic import BaseModel
from executors.base import ExecutorError, Interrupted, Result

class Toil(BaseModel):
    seconds: float = 1
    fault: str = ""
    text: str

class ToilExecutor:
    """toils"""
    name, inline, uses, section = "toil", False, frozenset({{"plugin"}}), Toil

    def run(self, ctx):
        journal = Path(os.environ["SOAK_JOURNAL"])
        what = f"{{ctx.task_name}}.{{ctx.stage}}"
        with (journal / f"{{what}}.lock").open("a") as alone, (journal / what).open("a", buffering=1) as lines:
            try:
                fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lines.write("twice\\n")
            lines.write("begun\\n")
            if ctx.spec.plugin.get("fault"):
                raise ExecutorError(ctx.spec.plugin["fault"], "ask for something else")
            child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"])
            self.write(ctx)
            child.kill()
            child.wait()
            lines.write("done\\n")
        return Result(payload={{"bytes": {BYTES}}})

    def write(self, ctx):
        parts = 20
        with (ctx.out / "work.bin").open("wb") as file:
            for part in range(parts):
                if ctx.stop.is_set():
                    raise Interrupted
                file.write(ctx.spec.plugin["text"].encode() * ({BYTES} // 10 // parts))
                file.flush()
                ctx.progress.update(part + 1, parts, "parts")
                time.sleep(float(ctx.spec.plugin["seconds"]) / parts)
'''


@dataclass
class Task:
    """One task file and the runs that it took; `fault`: what its user has done wrong."""

    name: str
    file: Path
    fault: str = ""
    runs: list[str] = field(default_factory=list)
    by_inbox: bool = False
    delivered: bool = True
    """Whether its result is delivered somewhere; a light one without that may share a process with the next."""
    quiet_since: float = 0.0
    """Since when all of its runs are over, by the monotonic clock."""


def install_executor(folder: Path) -> Path:
    """Write a package with the task type `toil`; returns the folder to put on the path."""
    package = folder / "toil-1.0.dist-info"
    package.mkdir(parents=True)
    (folder / "toils.py").write_text(_EXECUTOR)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toil\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[mloc.executors]\ntoil = toils:ToilExecutor\n")
    return folder


def write_tasks(folder: Path, first: int, count: int, rng: random.Random) -> list[Task]:
    """Write so many task files: a third light, a tenth with a fault; some are never tried again by themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_task(folder, number, rng) for number in range(first, first + count)]


def _task(folder: Path, number: int, rng: random.Random) -> Task:
    name, seconds = f"soak-{number:04d}", rng.choice((0.2, 0.5, 1, 1, 2, 6))
    kind = rng.choice((_light, _light, _heavy, _heavy, _mixed, _mixed))
    delivered = kind is not _light or rng.random() < 0.3
    fault = FAULT if kind is _heavy and rng.random() < 0.25 else ""
    output: Json = {"output": {"destination": {"type": "local", "path": f"delivered/{name}"}}} if delivered else {}
    document: Json = {
        "apiVersion": "mloc/v1",
        "metadata": {"name": name, "owner": rng.choice(("ann", "bob", "cem"))},
        "spec": {
            "retry": {"max_retries": rng.choice((0, 1, 3)), "backoff": 0.2},
            "resources": {"hardware": {"cpu": 1}},
            **kind(name, seconds, fault, output),
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return Task(name, path, fault, by_inbox=rng.random() < 0.1, delivered=delivered)


def _light(name: str, seconds: float, fault: str, output: Json) -> Json:
    stages = [
        {"name": "first", "spec": {"echo": {"task": name}}},
        {"name": "second", "spec": {"echo": 2}},
        {"name": "last", "spec": {"echo": ["${first.result.echo.task}"], **output}},
    ]
    return {"taskType": "echo", "stages": stages}


def _heavy(name: str, seconds: float, fault: str, output: Json) -> Json:
    return {"taskType": "toil", "plugin": {"seconds": seconds, "fault": fault, "text": f"{name}\n"}, **output}


def _mixed(name: str, seconds: float, fault: str, output: Json) -> Json:
    """Two heavy stages side by side between two light ones."""

    def toil(stage: str, seconds: float) -> Json:
        spec = {"taskType": "toil", "plugin": {"seconds": seconds, "text": f"{name}\n"}}
        return {"name": stage, "dependsOn": ["first"], "spec": spec}

    both = ["${left.result.bytes}", "${right.result.bytes}"]
    last = {"name": "last", "dependsOn": ["left", "right"], "spec": {"taskType": "echo", "echo": both, **output}}
    return {
        "stages": [
            {"name": "first", "spec": {"taskType": "echo", "echo": name}},
            toil("left", seconds),
            toil("right", 0.2),
            last,
        ]
    }
