"""W3C trace context: the header, tag and environment variable by which a trace goes on elsewhere."""

from __future__ import annotations

import re

TAG = "mloc/traceparent"
"""Run tag: the span that a run belongs to."""
VARIABLE = "TRACEPARENT"
"""Environment variable of a step: its span."""
HEADER = "traceparent"
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


def valid(text: str | None) -> str | None:
    """Return a traceparent as we hand it on, or None for what is none: by the standard it is then as if not sent."""
    found = _FORM.fullmatch((text or "").strip())
    if found is None or found[1] == "ff" or not found[2].strip("0") or not found[3].strip("0"):
        return None
    if found[1] == "00" and found[5]:
        return None
    return f"00-{found[2]}-{found[3]}-{found[4]}"
