"""`torchrun` that ends when its parent does: `python -m executors.distributed.agent ARGUMENTS OF TORCHRUN`."""

from __future__ import annotations

import signal
import sys

from executors.parent import end_with_parent


def main(arguments: list[str]) -> None:
    """Run torchrun in this process."""
    end_with_parent(signal.SIGTERM)
    from torch.distributed.run import main as torchrun

    torchrun(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
