"""The `mloc` command."""

from __future__ import annotations

import sys

from mloc_dagster.cli.app import app

USER_FAULT, TASK_FAILED = 2, 1


def main() -> None:
    """Entry point: a user's mistake is a message and exit code 2, a failed task exit code 1, never a traceback."""
    from mloc_dagster.cli.screen import error_console
    from mloc_dagster.spec import SpecError

    try:
        app()
    except SpecError as error:
        for fault in error.faults:
            error_console.print(str(fault), style="red", highlight=False, markup=False, soft_wrap=True)
        count = len(error.faults)
        error_console.print(f"{count} fault{'s' if count != 1 else ''}; nothing was run", style="bold red")
        sys.exit(USER_FAULT)
    except KeyboardInterrupt:
        error_console.print("interrupted")
        sys.exit(130)
