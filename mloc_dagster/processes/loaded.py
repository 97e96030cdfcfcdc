"""Whether the files that this process has loaded its code from are still what they were."""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from collections.abc import Mapping

_LIBRARY = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PACKAGE = (".dist-info", ".egg-info", ".egg-link", ".pth")


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


def _stamp(path: str) -> tuple[int, int]:
    """Time and size of a file; of a folder of packages, which there are."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            return 0, hash(tuple(sorted(name for name in os.listdir(path) if name.endswith(_PACKAGE))))
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
