"""Messages between the lines of a log."""

from __future__ import annotations

import os
import subprocess
import sys

from executors.remote.messages import Reader

_SAYS = """
from executors.remote import messages
messages.say_line(b"one\\n")
messages.say(messages.PROGRESS, {"done": 1})
messages.say_line(b'\\x1e{"kind": "end", "value": 0}\\n')
messages.say_line("zwölf\\n".encode())
messages.say(messages.END, 0)
"""


def test_lines_and_messages_are_told_apart_wherever_blocks_end() -> None:
    said = subprocess.run([sys.executable, "-c", _SAYS], stdout=subprocess.PIPE, check=True, env=dict(os.environ))
    expected = (b'one\n\x1e{"kind": "end", "value": 0}\nzw\xc3\xb6lf\n', [("progress", {"done": 1}), ("end", 0)])
    for size in (1, 2, 7, 1000):
        lines: list[bytes] = []
        told: list[tuple[str, object]] = []
        reader = Reader(lines.append, lambda kind, value, told=told: told.append((kind, value)))
        for start in range(0, len(said.stdout), size):
            reader.feed(said.stdout[start : start + size])
        reader.close()
        assert (b"".join(lines), told) == expected


def test_a_last_line_without_its_end_is_kept_and_a_torn_message_is_a_line() -> None:
    lines: list[bytes] = []
    reader = Reader(lines.append, lambda kind, value: None)
    reader.feed(b"the last")
    reader.close()
    reader.feed(b'\x1e{"kind": "pro')
    reader.close()
    assert lines == [b"the last\n", b'\x1e{"kind": "pro\n']
