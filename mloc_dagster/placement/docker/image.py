"""The image of a worker, on its engine."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mloc_dagster.placement.docker.client import engine_errors
from mloc_dagster.placement.remote.carrier import CarrierError, Unreachable
from mloc_dagster.placement.workers.engine import Docker

if TYPE_CHECKING:
    from docker import DockerClient


def ensure_image(client: DockerClient, declared: Docker) -> None:
    """Pull the image when it is to be pulled; raises CarrierError with the engine's words, or Unreachable."""
    there = _is_there(client, declared)
    if declared.pull == "never" and not there:
        raise CarrierError(
            f"the engine {declared.host} has no image {declared.image}, and pull is never\n"
            f"Build or load it there, or set docker.pull to missing in workers.yaml",
            lasting=True,
        )
    if declared.pull == "always" or not there:
        _pull(client, declared)


def _is_there(client: DockerClient, declared: Docker) -> bool:
    from docker.errors import ImageNotFound

    with engine_errors(declared.host):
        try:
            client.images.get(declared.image)
        except ImageNotFound:
            return False
    return True


def _pull(client: DockerClient, declared: Docker) -> None:
    """Pull, for so long as the worker's declaration allows; the engine may go on by itself afterwards."""
    failed: list[Exception] = []

    def pull() -> None:
        try:
            with engine_errors(declared.host):
                for line in client.api.pull(*_named(declared.image), stream=True, decode=True):
                    if "error" in line:
                        raise CarrierError(str(line["error"]), lasting=False)
        except (CarrierError, Unreachable) as error:
            failed.append(error)

    thread = threading.Thread(target=pull, daemon=True, name="pull")
    thread.start()
    thread.join(declared.pull_seconds)
    if thread.is_alive():
        limit = f"pull_seconds ({declared.pull_seconds:g})"
        raise CarrierError(f"the image {declared.image} was not pulled within {limit}", lasting=False)
    if failed and isinstance(failed[0], Unreachable):
        raise failed[0]
    if failed:
        lasting = isinstance(failed[0], CarrierError) and failed[0].lasting
        raise CarrierError(
            f"the image {declared.image} cannot be pulled: {failed[0]}\n"
            f"Check its name in workers.yaml, or build it on {declared.host}",
            lasting=lasting,
        )


def _named(image: str) -> tuple[str, str]:
    """An image without a tag is the latest."""
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(image)
    return repository, tag or "latest"
