"""Connections that a client cannot hold for ever: headers must come in time, and what is sent must be read."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_SECONDS = 30.0
"""So long the first byte of a connection, and all headers of a request, may take."""
STALLED_SECONDS = 60.0
"""So long a client may read nothing of what waits for it; the system's buffers are full by then."""


class Bounded(AutoHTTPProtocol):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass] - chosen at import
    """uvicorn's protocol, which by itself waits for ever in both cases. Bodies have their own bounds where they are
    read; websockets have pings."""

    _headers: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._transport = transport
        self._headers = self._later(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the time runs on while they are no whole request head."""
        super().data_received(data)
        cycle = self._cycle()
        if self._upgraded or (cycle is not None and not cycle.response_complete):
            self._headers = _over(self._headers)
        elif self._headers is None:
            self._headers = self._later(HEADER_SECONDS)

    def handle_websocket_upgrade(self, *arguments: Any) -> None:
        """Hand the connection on."""
        self._upgraded, self._headers = True, _over(self._headers)
        super().handle_websocket_upgrade(*arguments)  # pyright: ignore[reportAttributeAccessIssue]

    def pause_writing(self) -> None:
        """The client has much to read."""
        super().pause_writing()
        self._stalled = self._stalled or self._later(STALLED_SECONDS)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._stalled = _over(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the waiting."""
        self._headers, self._stalled = _over(self._headers), _over(self._stalled)
        super().connection_lost(exc)

    def _later(self, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._abort)

    def _abort(self) -> None:
        if not self._upgraded:
            self._transport.abort()

    def _cycle(self) -> Any:
        return getattr(self, "cycle", None)


def _over(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
