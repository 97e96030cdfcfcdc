"""The program of the warm process: `python -u -m executors.warm SOCKET IDLE DEVICES LOCK ROOM`.

Nobody's child: it outlives whoever started it. IDLE are seconds, LOCK is a file descriptor that it holds on to as long
as it lives, ROOM makes the command line long enough for those of its children.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path


def main(address: str, idle: str, devices: str, lock: str) -> int:
    """Serve stages until there is no reason to."""
    if os.fork():
        return 0
    os.setsid()
    from executors.warm.libraries import load

    try:
        loaded = load(devices)
        from executors.warm.server import serve

        serve(loaded, Path(address), float(idle), int(lock))
    except Exception:
        traceback.print_exc()
        Path(address).with_suffix(".failed").touch()
        return 1
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:5])
    os._exit(code)
