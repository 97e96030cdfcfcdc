"""First thing that runs in the sandbox: sets limits, then becomes the command.

Handed to the interpreter as text, so standard library only: `python -I -S -c TEXT LIMITS COMMAND...`, where LIMITS is
JSON `{"RLIMIT_...": [soft, hard]}`. Exit codes as in a shell: 127 no such command, 126 not executable.
"""

import json
import os
import resource
import sys


def become(limits: dict[str, list[int]], command: list[str]) -> int:
    """Set limits and replace this process; returns the exit code when the command cannot be started."""
    for name, (soft, hard) in limits.items():
        number = getattr(resource, name)
        most = resource.getrlimit(number)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(number, (soft, hard))
    os.nice(5)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        print(f"{command[0]}: command not found", file=sys.stderr)
        return 127
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 126


if __name__ == "__main__":
    sys.exit(become(json.loads(sys.argv[1]), sys.argv[2:]))
