"""What images install, from pyproject.toml: `requirements.py EXTRA ...` prints the requirements of MLOC and of extras.

`requirements.py --lock FILE OTHER` prints FILE with the versions of OTHER in place of its own.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_OWN = re.compile(r"mloc-dagster\[([\w,-]+)\]")


def requirements(project: dict, extras: list[str]) -> list[str]:
    """Return them sorted, extras of extras resolved; raises KeyError for an extra that is not there."""
    found, seen, rest = set(project["dependencies"]), set(), list(extras)
    while rest:
        extra = rest.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for one in project["optional-dependencies"][extra]:
            own = _OWN.fullmatch(one)
            if own:
                rest.extend(own[1].split(","))
            else:
                found.add(one)
    return sorted(found)


def merged(lock: str, other: str) -> list[str]:
    """Return the lines of a lock, with those of another one in place of its own."""

    def lines(text: str) -> dict[str, str]:
        rows = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return {row.partition("==")[0].lower(): row for row in rows}

    return sorted({**lines(lock), **lines(other)}.values())


def main(arguments: list[str]) -> None:
    """Print what is asked for."""
    if arguments[:1] == ["--lock"]:
        lock, other = (Path(name).read_text("utf-8") for name in arguments[1:])
        print("\n".join(merged(lock, other)))
        return
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    print("\n".join(requirements(project, arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
