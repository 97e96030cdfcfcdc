"""Texts and conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from mloc_dagster.spec.base import Json

Message = dict[str, str]
Text = str | list[Message]
"""Plain text, or the messages of a conversation with `role` and `content`."""


def is_conversation(value: Json) -> TypeGuard[list[Message]]:
    """Whether a value is a non-empty list of `{role, content}`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and "role" in turn and "content" in turn for turn in value)
    )


def as_conversation(value: list[Message]) -> list[Message]:
    """The messages with text contents and nothing else."""
    return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in value]
