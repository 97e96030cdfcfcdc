"""Checks of `spec.serve`: keys are secrets, and an address that others reach has one."""

from __future__ import annotations

from collections.abc import Iterator

from mloc_dagster.spec.faults import Fault, shown
from mloc_dagster.spec.serve import is_loopback
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.spec.tree import Mapping
from mloc_dagster.spec.typed import origin_at


def serve(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    """Faults of the section."""
    section, secret = stage.spec.serve, stage.is_deferred("serve.api_key")
    key, host = origin_at(tree, ("serve", "api_key")), origin_at(tree, ("serve", "host"))
    if key is not None and section.api_key is not None and not secret:
        yield Fault(*key.value, key.text, "is written out in the file", "", "write ${NAME} and set that variable")
    open_to_others = not stage.is_deferred("serve.host") and not is_loopback(section.host)
    if host is not None and open_to_others and section.api_key is None and not secret:
        what = "is an address that other machines reach, and there is no serve.api_key"
        yield Fault(*host.value, host.text, what, shown(section.host), "add api_key: ${NAME}, or write 127.0.0.1")
