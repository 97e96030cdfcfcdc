"""With what software a stage was carried out: packages by version, as they are installed where it runs."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mloc_dagster.spec.base import Json

TRAINING = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed")
"""Packages that training calls itself; bitsandbytes and deepspeed are not always there."""


def software(roots: Iterable[str]) -> dict[str, Json]:
    """Return Python, the platform, and the versions of packages and of all that they require."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "packages": dict(sorted(versions(roots).items())),
    }


def versions(roots: Iterable[str]) -> dict[str, str]:
    """Return versions by normalised name; what is not installed is left out. It is read, not imported."""
    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = package.version
        for required in map(Requirement, package.requires or ()):
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                waiting.append(required.name)
    return found
