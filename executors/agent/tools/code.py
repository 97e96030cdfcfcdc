"""`python_repl` and `bash`: code and commands of the model, contained."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Annotated

from executors.agent.tools.room import Room
from executors.sandbox import Ended, Limits, run

_SHOW_LAST = "(lambda value: value is None or print(repr(value)))({})"


def python_repl(room: Room, seconds: float) -> Callable[..., str]:
    """Return the tool that runs Python."""

    def execute(code: Annotated[str, "Python source; print what you want to see"]) -> str:
        """Run Python in your work folder and return what it prints. Variables are not kept; files are."""
        return _told(run(with_last_value(code), work=room.folder, limits=_limits(room, seconds)))

    return execute


def bash(room: Room, seconds: float) -> Callable[..., str]:
    """Return the tool that runs shell commands."""

    def execute(command: Annotated[str, "A shell command line"]) -> str:
        """Run a shell command in your work folder and return what it prints. There is no network."""
        return _told(run(["bash", "-c", command], work=room.folder, limits=_limits(room, seconds)))

    return execute


def with_last_value(code: str) -> str:
    """Return the source such that the value of a last expression is printed, as at a prompt."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return code
    if not tree.body or not isinstance(tree.body[-1], ast.Expr):
        return code
    last = ast.unparse(tree.body[-1].value)
    tree.body[-1] = ast.parse(_SHOW_LAST.format(last)).body[0]
    return ast.unparse(tree)


def _limits(room: Room, seconds: float) -> Limits:
    longest = room.seconds_left(seconds)
    return Limits(seconds=longest, cpu_seconds=max(1, round(longest)))


def _told(ended: Ended) -> str:
    parts = [ended.stdout.rstrip("\n")]
    if ended.stderr.strip():
        parts.append(f"[stderr]\n{ended.stderr.strip()}")
    if ended.ended_by:
        parts.append(f"[ended after {ended.seconds:.1f} s: the limit of {ended.ended_by} was reached]")
    elif ended.exit_code:
        parts.append(f"[exit code {ended.exit_code}]")
    return "\n".join(part for part in parts if part) or "[no output]"
