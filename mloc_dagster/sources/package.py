"""Models that an installed Python package carries; the package is never imported."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from mloc_dagster.sources.pulled import PullError, clear

TINY = "mloc-tiny-llama"
"""A model of 0.4 million parameters that is made on the spot."""

_CODE = Path(__file__).parents[2]
_NO_MODEL = shutil.ignore_patterns("__pycache__", "__init__.py", "*.pyc")


def key(identifier: str) -> str:
    """Return what identifies the model: the package and its version, and the code of ours that makes it of that."""
    if identifier == TINY:
        return f"package:{TINY}:{_recipe('tiny_llama')}"
    return f"package:{identifier}:{_package(identifier).version}:{_recipe('convert_gguf')}"


def fill(identifier: str, folder: Path) -> str | None:
    """Put the model of a package into a folder and return the package's version. Raises PullError.

    A model folder is copied as it is; else the largest GGUF file is converted to bf16 safetensors.
    """
    clear(folder)
    if identifier == TINY:
        _run("executors.tiny_llama", folder)
        return None
    package = _package(identifier)
    files = [Path(str(file.locate())) for file in package.files or ()]
    config = next((file for file in files if file.name == "config.json" and _has_weights(file.parent)), None)
    gguf = max((file for file in files if file.suffix == ".gguf"), key=lambda file: file.stat().st_size, default=None)
    if config is not None:
        shutil.copytree(config.parent, folder, dirs_exist_ok=True, ignore=_NO_MODEL)
    elif gguf is not None:
        _run("executors.convert_gguf", gguf, folder)
    else:
        raise PullError(f"the package {identifier!r} holds neither a model folder nor a GGUF file; name one that does")
    return package.version


def _package(identifier: str) -> Distribution:
    try:
        return distribution(identifier)
    except (PackageNotFoundError, ValueError):
        raise PullError(f"the package {identifier!r} is not installed; pip install --no-deps {identifier}") from None


def _recipe(module: str) -> str:
    return hashlib.sha256((_CODE / "executors" / f"{module}.py").read_bytes()).hexdigest()[:8]


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _run(module: str, *arguments: Path) -> None:
    """Run one of our own modules in a process of its own, since it needs torch; it ends when this process ends."""
    path = os.pathsep.join(filter(None, [str(_CODE), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", _WITH_PARENT, module, str(os.getpid()), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        missing = "ModuleNotFoundError" in done.stderr
        hint = "pip install 'mloc-dagster[inference]'" if missing else f"run python -m {module} for the whole error"
        raise PullError(f"{module} failed with exit code {done.returncode}: {last}; {hint}")


_WITH_PARENT = """
import ctypes, os, runpy, sys
module, parent = sys.argv[1], int(sys.argv[2])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != parent:
    sys.exit(1)
sys.argv[1:] = sys.argv[3:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""The next pull starts when this process is gone: two processes that write one folder would spoil it."""
