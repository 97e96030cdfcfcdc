"""Tells when an engine has to end."""

from __future__ import annotations

import time

import psutil

from executors.serving.registry import EngineFolder, EngineSpec, engines_of

_TICK_SECONDS = 0.25
_MEMORY_EVERY_SECONDS = 2.0
_SHORT_OF_MEMORY = 0.05
"""Share of the machine's memory that must stay available beside idle engines."""


def watch(folder: EngineFolder, spec: EngineSpec, pid: int) -> None:
    """Return when the engine of this process must end; the folder is removed then, unless another one owns it."""
    looked = 0.0
    while True:
        time.sleep(_TICK_SECONDS)
        state = folder.state()
        if state is None or state.pid != pid:
            return
        idle = _idle_since(folder)
        if idle is None:
            continue
        over = time.time() - idle >= spec.idle_seconds
        if not over and time.monotonic() - looked > _MEMORY_EVERY_SECONDS:
            looked = time.monotonic()
            over = _too_many(folder, spec, idle)
        if over and _removed(folder):
            return


def _idle_since(folder: EngineFolder) -> float | None:
    """Since when nobody uses the engine, noted in its state; None while somebody does, or it is still loading."""
    state = folder.state()
    if state is None:
        return None
    used = folder.leases() > 0
    since = None if used else (state.idle_since or time.time())
    if since != state.idle_since:
        with folder.locked_soon() as alone:  # whoever starts or ends it writes the state too
            if not alone:
                return None
            folder.write_state(state.model_copy(update={"idle_since": since}))
    return since


def _too_many(folder: EngineFolder, spec: EngineSpec, idle: float) -> bool:
    """Whether this engine has to go for others: too many are idle, or memory is short, and it was idle the longest."""
    others = [state.idle_since for one in engines_of(folder.root) if one.key != folder.key and (state := one.state())]
    since = [other for other in others if other is not None]
    memory = psutil.virtual_memory()
    short = memory.available < _SHORT_OF_MEMORY * memory.total
    return sum(other >= idle for other in since) >= spec.most_idle or (short and all(other >= idle for other in since))


def _removed(folder: EngineFolder) -> bool:
    """Take the engine out of the registry, unless somebody got a lease at the last moment."""
    with folder.locked_soon() as alone:
        if not alone or folder.leases():
            return False
        folder.remove()
        return True
