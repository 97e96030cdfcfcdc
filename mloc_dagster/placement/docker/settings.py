"""How the container of an attempt is made."""

from __future__ import annotations

from typing import Any

from executors.distributed.nodes import COUNT, FIRST, RANK
from mloc_dagster.placement.remote.carrier import Order
from mloc_dagster.placement.workers.engine import Docker

JOB, ATTEMPT, DEVICES = "mloc.job", "mloc.attempt", "mloc.devices"
"""Labels: what a container is found by, which attempt it is, and the GPUs that it was given."""
REPLICA, REPLICAS = "mloc.replica", "mloc.replicas"
"""Labels of containers that train as one: its number from 0, and how many there are."""
_CACHE = "/var/cache/mloc"


def container_settings(declared: Docker, order: Order, replica: int = 0, first: str = "") -> dict[str, Any]:
    """Return the arguments of docker-py's `containers.create` for one replica; `first` is the container of the first.

    Replicas share the network of the first one: they meet on its loopback interface, whatever network that is.

    CPU is a hard limit where the stage asks for cores, else a weight; memory and swap together are the memory that it
    gets. The log is kept whole: rotation would lose lines of a step that is followed again after a restart.
    """
    from docker.types import DeviceRequest, LogConfig

    volumes = [*declared.volumes, *([f"{declared.cache_volume}:{_CACHE}"] if declared.cache_volume else [])]
    environment = dict(order.environment)
    if declared.cache_volume:
        environment["MLOC_REMOTE_CACHE"] = _CACHE
    several = order.replicas > 1
    if several:
        environment |= {COUNT: str(order.replicas), RANK: str(replica), FIRST: f"127.0.0.1:{order.port}"}
    settings: dict[str, Any] = {
        "image": declared.image,
        "command": ["python", "-u", "-m", "executors.remote", order.store, order.key],
        "name": f"mloc-{order.attempt}-{replica}" if several else f"mloc-{order.attempt}",
        "labels": {
            **order.labels,
            JOB: identity(order.store, order.job),
            ATTEMPT: order.attempt,
            DEVICES: ",".join(map(str, order.devices_of(replica))),
            **({REPLICA: str(replica), REPLICAS: str(order.replicas)} if several else {}),
        },
        "environment": environment,
        "volumes": volumes,
        "mem_limit": order.memory,
        "memswap_limit": order.memory,
        "cpu_shares": max(2, order.share * 1024 // 1000),
        "log_config": LogConfig(type="json-file", config={}),
        "restart_policy": {"Name": "no"},
        "security_opt": ["no-new-privileges"],
        "stop_signal": "SIGTERM",
    }
    if order.cpu is not None:
        settings["nano_cpus"] = order.cpu * 1_000_000
    if order.devices:
        ids = [str(index) for index in order.devices_of(replica)]
        settings["device_requests"] = [DeviceRequest(device_ids=ids, capabilities=[["gpu"]])]
    optional = {
        "network": declared.network if not first else None,
        "network_mode": f"container:{first}" if first else None,
        "runtime": declared.runtime,
        "shm_size": declared.shm_size,
        "user": declared.user,
        "cpuset_cpus": declared.cpuset,
    }
    return settings | {name: value for name, value in optional.items() if value is not None}


def identity(store: str, job: str) -> str:
    """The label of all attempts at a piece of work."""
    return f"{store}/{job}"
