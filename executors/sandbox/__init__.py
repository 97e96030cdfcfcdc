"""Code and shell commands of agents, contained: no network, no secrets, bounded use, one writable folder."""

from executors.sandbox.ended import Ended
from executors.sandbox.limits import Limits
from executors.sandbox.run import contained, run

__all__ = ["Ended", "Limits", "contained", "run"]
