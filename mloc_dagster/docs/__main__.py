"""`python -m mloc_dagster.docs [--check] [FOLDER]`: writes the reference pages, or says which are not up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mloc_dagster.docs.api import api_page
from mloc_dagster.docs.tasks import tasks_page

_PAGES = {"tasks.md": tasks_page, "api.md": api_page}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 when `--check` finds a page that is not up to date."""
    parser = argparse.ArgumentParser(prog="python -m mloc_dagster.docs")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a page is old")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"), help="where the pages are (docs)")
    given = parser.parse_args(arguments)
    old = [name for name, page in _PAGES.items() if _is_old(given.folder / name, page(), given.check)]
    for name in old if given.check else ():
        print(f"{given.folder / name} is not up to date; run: python -m mloc_dagster.docs", file=sys.stderr)
    return 1 if given.check and old else 0


def _is_old(file: Path, text: str, only_look: bool) -> bool:
    if file.is_file() and file.read_text("utf-8") == text:
        return False
    if not only_look:
        file.write_text(text, "utf-8")
    return True


if __name__ == "__main__":
    sys.exit(main())
