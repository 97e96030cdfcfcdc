"""Settings files of a deployment: read like task files, every fault with its place."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from mloc_dagster.spec.base import Section
from mloc_dagster.spec.canonical import canonicalise
from mloc_dagster.spec.faults import Fault, SpecError, shown, without_echoes
from mloc_dagster.spec.tree import Mapping, Origin, read
from mloc_dagster.spec.typed import validate

T = TypeVar("T", bound=Section)


def read_text(path: Path) -> str:
    """Return the text of a settings file; raises SpecError when it cannot be read."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([Fault(0, 0, "", "cannot be read", str(error)[:80], "save it as UTF-8", str(path))]) from None


def parse(text: str, file: str, kind: type[T], first_key: str) -> tuple[T, Mapping]:
    """Return a settings file as its model, and its tree, for checks that name a place. Raises SpecError.

    `first_key` is what the hint tells somebody to start with who has written no map.
    """
    tree, faults = read(text)
    if not isinstance(tree, Mapping) and not faults:
        faults.append(Fault(1, 1, "", "must be a map", shown(tree), f"start with {first_key}:"))
    if isinstance(tree, Mapping):
        tree = canonicalise(tree, kind, faults)
        typed, deferred, wrong = validate(tree, kind, Origin((), (1, 1), (1, 1)))
        faults.extend(wrong)
        if deferred:
            faults.append(Fault(1, 1, deferred[0], "holds a reference", "", "write a value; only task files refer"))
        if typed is not None and not faults:
            return typed, tree
    raise SpecError([fault.in_file(file) for fault in without_echoes(faults)])
