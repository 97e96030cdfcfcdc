"""SIGTERM reaches a process whatever it is in the middle of."""

from __future__ import annotations

import subprocess
import sys
import textwrap

_BEGINS = """
import os, signal, sys, threading, time
from executors.stopping import on_sigterm
stop = threading.Event()
"""


def end_of(program: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", _BEGINS + textwrap.dedent(program)],
        timeout=30,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_signal_while_the_lock_of_the_event_is_held_is_heard() -> None:
    program = """
        on_sigterm(stop.set)
        with stop._cond:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        print(stop.wait(10))
    """
    assert end_of(program) == (0, "True\n")


def test_a_second_signal_ends_at_once() -> None:
    program = """
        on_sigterm(lambda: None, lambda: os._exit(9))
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait(10)
    """
    assert end_of(program)[0] == 9


def test_the_signal_of_a_forked_child_is_not_its_parents() -> None:
    program = """
        on_sigterm(stop.set)
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.wait(0.5))
    """
    assert end_of(program) == (0, "143 False\n")
