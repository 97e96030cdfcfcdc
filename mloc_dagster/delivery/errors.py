"""What goes wrong with a delivery."""

from __future__ import annotations


class DeliveryError(Exception):
    """A delivery that did not succeed; the message says where to, why, and what to do."""


class TryAgain(Exception):
    """One attempt that did not come through, and that another one may."""
