"""Hiding of values that were read from the environment."""

from __future__ import annotations

import io

from executors.secrets import HidingStream, Secrets


def test_only_values_that_were_read_are_hidden() -> None:
    secrets = Secrets({"A": "alpha-value", "B": "beta-value"})
    assert secrets["A"] and "B" in secrets
    assert secrets.hide({"alpha-value": ["x alpha-value", "beta-value", 3]}) == {"***": ["x ***", "beta-value", 3]}


def test_short_values_are_hidden_only_as_a_whole() -> None:
    secrets = Secrets({"A": "1"})
    assert secrets["A"]
    assert secrets.hide(["1", "11 items"]) == ["***", "11 items"]


def test_stream_hides_a_secret_that_is_written_in_pieces() -> None:
    secrets = Secrets({"A": "alpha-value"})
    assert secrets["A"]
    out = io.StringIO()
    stream = HidingStream(out, secrets)
    for piece in ("say alp", "ha-va", "lue now\nrest"):
        stream.write(piece)
    stream.close_line()
    assert out.getvalue() == "say *** now\nrest"
