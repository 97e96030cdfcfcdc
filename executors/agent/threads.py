"""Blocking tools in threads that nobody waits for once their time is over."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any


def threaded(call: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function that runs `call` in a thread of its own.

    A call that is given up goes on in its thread, which does not hold up the end of the process.
    """

    @functools.wraps(call)
    async def run(*args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def work() -> None:
            result, error = None, None
            try:
                result = call(*args, **kwargs)
            except BaseException as raised:
                error = RuntimeError(str(raised)) if isinstance(raised, StopIteration) else raised
            with suppress(RuntimeError):  # the loop is closed: the call was given up
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=work, daemon=True, name=f"tool {call.__name__}").start()
        return await future

    return run
