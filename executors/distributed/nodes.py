"""Machines, or containers, that share no folder and train as one: which of them this is, and where the first one is."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass

COUNT, RANK, FIRST = "MLOC_NODES", "MLOC_NODE_RANK", "MLOC_FIRST_NODE"
"""Environment variables: how many there are, the number of this one from 0, and `host:port` of the first."""
_INDEX = "JOB_COMPLETION_INDEX"
"""What Kubernetes tells a pod of an Indexed Job in place of RANK (kubernetes.io, Indexed Job)."""


@dataclass(frozen=True)
class Node:
    """One of `count` nodes; `rank` from 0."""

    count: int
    rank: int
    first_host: str
    first_port: int

    @property
    def on_loopback(self) -> bool:
        """Whether all of them meet inside one network name space."""
        try:
            return ipaddress.ip_address(self.first_host).is_loopback
        except ValueError:
            return self.first_host == "localhost"


def this_node(environment: Mapping[str, str] = os.environ) -> Node | None:
    """Return which node this is; None where a training has one machine. Raises ValueError for what makes no sense."""
    if COUNT not in environment:
        return None
    rank = environment.get(RANK) or environment.get(_INDEX)
    host, _, port = environment.get(FIRST, "").rpartition(":")
    try:
        node = Node(int(environment[COUNT]), int(rank or ""), host, int(port))
    except ValueError:
        node = None
    if node is None or not 0 <= node.rank < node.count or not host:
        told = ", ".join(f"{name}={environment.get(name)!r}" for name in (COUNT, RANK, _INDEX, FIRST))
        raise ValueError(f"the environment does not say which node this is: {told}")
    return node
