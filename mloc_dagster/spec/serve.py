"""`spec.serve`: where an endpoint listens, how long, and who may use it."""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from mloc_dagster.spec.base import Section, also

_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([smhd]?)\s*$")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_seconds(value: object) -> float:
    """Return seconds for `90`, `"90"`, `90s`, `15m`, `2h` or `1d`; raises ValueError otherwise."""
    match = _DURATION.match(str(value)) if isinstance(value, (int, float, str)) and value is not True else None
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"{value!r:.60} is not a length of time; write seconds, or 90s, 15m, 2h, 1d")
    return seconds


_SCHEMA = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": ["string"], "pattern": _DURATION.pattern}]}
Duration = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0), WithJsonSchema(_SCHEMA)]
"""Seconds; `15m`, `2h` and `1d` are longer."""


class Serve(Section):
    """A long-running endpoint."""

    host: str = "127.0.0.1"
    """Address that it listens on; one that other machines reach needs an api_key."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port that it listens on; 0 takes a free one."""
    ttl: Annotated[Duration | None, also("ttl_seconds", "ttlSeconds")] = None
    """How long it serves; the stage has succeeded then. Until it is cancelled when not given."""
    idle_timeout: Annotated[Duration | None, also("idleTimeout")] = None
    """How long it waits for a request before it ends, which is a success too."""
    api_key: Annotated[str | None, Field(min_length=8), also("apiKey")] = None
    """Bearer token of its users, as ${NAME}; a random one is made when none is given."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
