"""What a tool says when it cannot do what it was asked."""

from __future__ import annotations


class ToolFault(Exception):
    """A fault that the model is told of, in words that it can act on."""
