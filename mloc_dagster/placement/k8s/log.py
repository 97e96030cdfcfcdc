"""The log of a pod, each line once, over broken connections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from mloc_dagster.placement.k8s.api import Api
from mloc_dagster.placement.k8s.names import CONTAINER

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


class PodLog:
    """Reads on from the last line that was read: lines carry the time at which the node took them down.

    `sinceTime` counts in whole seconds, and several lines may have the same time; so lines of that time are counted,
    and what is known is passed over. A line without a time is not the work's, but what the node says of the log.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._last, self._count = "", 0

    def read(self, pod: str, *, follow: bool) -> Iterator[bytes]:
        """Yield lines that are new, without their times; ends when the stream does. Raises as `Api.log`."""
        known, rest, past = self._count, b"", False
        since = f"{self._last[:19]}Z" if self._last else ""
        for block in self._api.log(pod, CONTAINER, follow=follow, since=since):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                time, text = _taken_apart(line)
                if not time:
                    yield text + b"\n"
                    continue
                if not past and time < self._last:
                    continue
                if not past and time == self._last and known:
                    known -= 1
                    continue
                past = True
                self._count = self._count + 1 if time == self._last else 1
                self._last = time
                yield text + b"\n"
        if rest and not follow:  # the work is over: its last line had no end
            yield _taken_apart(rest)[1] + b"\n"


def _taken_apart(line: bytes) -> tuple[str, bytes]:
    """The time of a line in UTC, as text that sorts as it does, and what comes after it; no time: all of the line.

    The time is RFC 3339 with up to nine digits of the second, in the zone that the node is set to.
    """
    stamp, _, text = line.partition(b" ")
    found = _STAMP.fullmatch(stamp.decode("ascii", "replace"))
    if found is None:
        return "", line
    whole, fraction, zone = found.groups(default="")
    try:
        moment = datetime.fromisoformat(f"{whole}{zone}").astimezone(UTC)
    except ValueError:
        return "", line
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:0<9}", text
