"""Lines of a log by the times that nodes write before them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mloc_dagster.placement.k8s.log import PodLog


class Node:
    """Answers with what comes next, and remembers from when it was asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers, self.asked = list(answers), list[str]()

    def log(self, pod: str, container: str, *, follow: bool, since: str) -> Iterator[bytes]:
        self.asked.append(since)
        yield self.answers.pop(0)


def read(node: Any, times: int) -> list[bytes]:
    log = PodLog(node)
    return [b"".join(log.read("p", follow=True)) for _ in range(times)]


def test_a_log_in_another_zone_goes_on_where_it_broke_off() -> None:
    one, two = b"2026-03-01T14:00:00.5+02:00 one\n", b"2026-03-01T14:00:01.25+02:00 two\n"
    node = Node(one, one + two)
    assert read(node, 2) == [b"one\n", b"two\n"]
    assert node.asked == ["", "2026-03-01T12:00:00Z"]


def test_what_the_node_says_without_a_time_is_no_place_in_the_log() -> None:
    one, said = b"2026-03-01T12:00:00Z one\n", b"failed to try resolving symlinks\n"
    node = Node(one + said, one + b"2026-03-01T12:00:00.1Z two\n")
    assert read(node, 2) == [b"one\n" + said, b"two\n"]
    assert node.asked == ["", "2026-03-01T12:00:00Z"]
