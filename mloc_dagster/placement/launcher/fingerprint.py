"""What a pool has loaded, and for whom: it serves only those who would load the same."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

_LOADING = ("LC_", "LD_", "PYTHON")
_PLACES = ("LANG", "MLOC_HOME", "DAGSTER_HOME")
_OPENING = "PG"
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
