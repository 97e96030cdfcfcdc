"""`mloc worker`: this machine asks a service for work."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from executors.stopping import on_sigterm
from mloc_dagster.cli.app import app
from mloc_dagster.cli.screen import console, fail
from mloc_dagster.cli.service import LOOPBACK
from mloc_dagster.placement.workers.detect import this_machine
from mloc_dagster.placement.workers.need import WHOLE
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec.quantity import parse_cpu, parse_memory


@app.command()
def worker(
    connect: Annotated[str, typer.Option(metavar="URL", help="The service: https://HOST.")],
    token_file: Annotated[Path, typer.Option(metavar="FILE", help="Holds a token of the scope worker.")],
    name: Annotated[
        str, typer.Option(help="The worker's name: the token's (which is the default), or that with a suffix, lab-2.")
    ] = "",
    folder: Annotated[Path, typer.Option(help="Where work, logs on their way and inputs are kept.")] = Path(
        "~/.mloc-worker"
    ),
    cpu: Annotated[str | None, typer.Option(help="Cores for stages, in place of all.", show_default=False)] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory for stages (64Gi), in place of all.", show_default=False)
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Certificates to trust in place of the machine's own.", show_default=False),
    ] = None,
    inputs: Annotated[str, typer.Option(help="So much of inputs is kept for other stages.")] = "200Gi",
    log: Annotated[str, typer.Option(help="So much of a stage's log may wait while the service is away.")] = "1Gi",
) -> None:
    """Run stages on this machine for a service that it can reach; nobody needs to reach this machine.

    Stages go on while the service is away, and when this command is killed: started again in the same folder, it takes
    them over. Ctrl-C or SIGTERM has them store their state and end; the service begins them again elsewhere.
    """
    from mloc_dagster.client import Refused
    from mloc_dagster.placement.pull.agent import Agent, Untrusted, Where

    _check(connect, token_file, ca)
    place, leaving = folder.expanduser().resolve(), threading.Event()
    try:
        hardware = _hardware(cpu, memory)
        most_log, most_inputs = parse_memory(log), parse_memory(inputs)
        where = Where(connect, token_file.resolve(), place, ca.resolve() if ca else None, most_log, most_inputs)
        with _alone(place):
            agent = Agent(where, name, hardware, _say)
            on_sigterm(leaving.set)
            signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            agent.run(leaving)
    except Refused as refused:
        fail(str(refused))
    except Untrusted as error:
        fail(f"{connect} is not trusted: {error}", "name the certificate of its authority with --ca FILE")
    except (ValueError, OSError) as error:
        fail(str(error))


def _check(connect: str, token_file: Path, ca: Path | None) -> None:
    """End the command for what cannot work, or would show the token to whoever listens."""
    parts = urlsplit(connect)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        fail(f"--connect {connect}: no address of a service", "write https://HOST, as the proxy with TLS has it")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        told = "who reads the traffic reads the token, and the secrets of stages"
        fail(f"--connect {connect}: not without TLS: {told}", "put a proxy with TLS in front of the service: https://")
    for option, path in (("--token-file", token_file), ("--ca", ca)):
        if path is not None and not path.is_file():
            fail(f"{option} {path}: no such file")
    if token_file.stat().st_mode & 0o077:
        fail(f"--token-file {token_file}: others on this machine may read it", f"chmod 600 {token_file}")


def _hardware(cpu: str | None, memory: str | None) -> Worker:
    """What this machine has, or as much of it as is given; raises ValueError."""
    found = this_machine()
    cores = round(parse_cpu(cpu) * WHOLE) if cpu else found.cpu
    size = parse_memory(memory) if memory else found.memory
    if not cores or not size:
        raise ValueError("--cpu and --memory must be above 0")
    return replace(found, cpu=cores, memory=size)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only worker in a folder, which nobody else may read."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"{folder} is used by another mloc worker", "end that one, or name another --folder")
        yield


def _say(words: str) -> None:
    console.print(words, highlight=False, markup=False, soft_wrap=True)
