"""Starter files: the shipped templates, by name."""

from __future__ import annotations

from pathlib import Path


def shipped() -> Path:
    """Return the folder of shipped task files: of the installed package, or of the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "_task_specs"
    return installed if installed.is_dir() else package.parent / "task_specs"


def starters() -> dict[str, Path]:
    """Return the starter files by name (the task type, with a variant where there are several)."""
    return {path.stem: path for path in sorted((shipped() / "templates").glob("*.yaml"))}


def starter(name: str) -> str:
    """Return the text of a starter; KeyError when there is none."""
    return starters()[name].read_text("utf-8")
