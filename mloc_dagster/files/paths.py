"""Paths inside JSON, when what they name has moved."""

from __future__ import annotations

import os
from typing import Any


def moved(value: Any, old: str, new: str) -> Any:
    """Return JSON with every path below `old` put below `new`; `file://` addresses of such paths, too."""
    if isinstance(value, str):
        scheme = "file://" if value.startswith("file://") else ""
        path = value.removeprefix(scheme)
        return scheme + new + path[len(old) :] if path == old or path.startswith(old + os.sep) else value
    if isinstance(value, dict):
        return {key: moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, old, new) for item in value]
    return value
