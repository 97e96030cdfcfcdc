"""What a pool has loaded, and for whom: it serves only those who would load the same."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

_LOADING = ("LC_", "LD_", "PYTHON")
_PLACES = ("LANG", "MLOC_HOME", "DAGSTER_HOME")
_OPENING = "PG"
_LIBRARY = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PACKAGE = (".dist-info", ".egg-info", ".egg-link", ".pth")
_CARRIED = ("HOME", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")


def pool_environment(settings: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a pool gets of a launcher's environment: what loading depends on, and nothing else.

    `settings` is the `dagster.yaml`; variables that it names by `env:` are needed to open the instance.
    """
    carried = {key: environment[key] for key in _CARRIED if key in environment}
    needed = {**carried, **_loading(environment), **opening_variables(settings, environment)}
    path = [str(Path(__file__).parents[3]), *filter(None, needed.get("PYTHONPATH", "").split(os.pathsep))]
    return {**needed, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def pool_name(settings: Path, environment: Mapping[str, str]) -> str:
    """Return one name (hex) for the interpreter, what it loads code by, and the settings; no secret goes into it."""
    text = settings.read_text("utf-8") if settings.exists() else ""
    parts = [sys.executable, sys.prefix, __file__, text, sorted(_loading(environment).items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def opening_variables(settings: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the instance is opened with, which may be secrets: a pool compares them itself."""
    named = set(_named(settings))
    return {key: value for key, value in environment.items() if key.startswith(_OPENING) or key in named}


class Loaded:
    """How the files of all loaded modules were, and which packages were installed, when this was made.

    What `before` has seen already counts as it was then.
    """

    def __init__(self, before: Loaded | None = None) -> None:
        files = {str(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())}
        known: dict[str, tuple[int, int]] = {**before._installed, **before._own} if before else {}
        seen: dict[str, tuple[int, int]] = {
            path: known.get(path) or _stamp(path) for path in sorted({*files, *sys.path[1:]}) if path
        }
        self._installed = {path: stamp for path, stamp in seen.items() if path.startswith(_LIBRARY)}
        self._own = {path: stamp for path, stamp in seen.items() if path not in self._installed}

    def changed(self) -> str | None:
        """Return a file of ours, or of a package that is being worked on, that is not as it was."""
        return _changed(self._own)

    def changed_library(self) -> str | None:
        """Return a file of the interpreter or of an installed package that is not as it was; there are thousands."""
        return _changed(self._installed)


def _changed(seen: Mapping[str, tuple[int, int]]) -> str | None:
    return next((path for path, stamp in seen.items() if _stamp(path) != stamp), None)


def _loading(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(_LOADING) or key in _PLACES}


def _named(settings: Path) -> Iterator[str]:
    """Names of the environment variables that the settings refer to."""
    try:
        waiting = [yaml.safe_load(settings.read_text("utf-8"))]
    except (OSError, yaml.YAMLError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("env"), str):
                yield value["env"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _stamp(path: str) -> tuple[int, int]:
    """Time and size of a file; of a folder of packages, which there are."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            return 0, hash(tuple(sorted(name for name in os.listdir(path) if name.endswith(_PACKAGE))))
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
