"""The run coordinator that `dagster.yaml` names: runs wait in MLOC's queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRun, Enum, EnumValue, Field, Permissive
from dagster._config import IntSource
from dagster._core.run_coordinator import DefaultRunCoordinator, QueuedRunCoordinator, SubmitRunContext
from dagster._serdes import ConfigurableClassData

from mloc_dagster.placement.failures.cause import ATTEMPTS, CAUSE
from mloc_dagster.placement.launcher.workers import LAUNCHER, WORKER
from mloc_dagster.placement.queue.asked import WAITING
from mloc_dagster.placement.queue.items import Policy
from mloc_dagster.placement.queue.signals import daemon_is_there, knock

_DEFAULTS = Policy()
_OF_ONE_RUN = (WORKER, LAUNCHER, CAUSE, ATTEMPTS, WAITING)


class QueueCoordinator(QueuedRunCoordinator):
    """Runs wait for the daemon of `mloc up` or `mloc daemon`, which starts them in order as there is room.

    `without_daemon`: `launch` starts a run at once when there is no daemon on this machine, past the queue; `wait` has
    it wait for one, as it must be where the daemon runs on another machine. `lease_seconds`: a run that was silent for
    so long loses its hardware. The others are those of `Policy`; times in seconds.
    """

    def __init__(
        self,
        policy: Policy = _DEFAULTS,
        tick_seconds: float = 0.2,
        lease_seconds: float = 60.0,
        without_daemon: str = "launch",
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        super().__init__(max_concurrent_runs=policy.most, inst_data=inst_data)
        self.policy, self.tick_seconds, self.lease_seconds = policy, tick_seconds, lease_seconds
        self._waits = without_daemon == "wait"
        self.gate: Callable[[DagsterInstance, DagsterRun], None] = lambda instance, run: None
        """Asked before a run is taken; what it raises is told to who submits, and the run fails with it."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """What `dagster.yaml` may set."""
        choices = Enum("WithoutDaemon", [EnumValue("launch"), EnumValue("wait")])
        return {
            "max_concurrent_runs": Field(IntSource, is_required=False, default_value=-1),
            "owner_weights": Field(Permissive(), is_required=False, default_value={}),
            "aging_seconds": Field(float, is_required=False, default_value=_DEFAULTS.aging),
            "half_life_seconds": Field(float, is_required=False, default_value=_DEFAULTS.half_life),
            "tick_seconds": Field(float, is_required=False, default_value=0.2),
            "lease_seconds": Field(float, is_required=False, default_value=60.0),
            "without_daemon": Field(choices, is_required=False, default_value="launch"),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> QueueCoordinator:
        """Make one from `dagster.yaml`; raises DagsterInvalidConfigError for values that make no sense."""
        given = dict(config_value)
        _check(given)
        policy = Policy(
            weights=given["owner_weights"],
            aging=given["aging_seconds"],
            half_life=given["half_life_seconds"],
            most=given["max_concurrent_runs"],
        )
        return cls(policy, given["tick_seconds"], given["lease_seconds"], given["without_daemon"], inst_data)

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Have a run wait, and wake the daemon; or start it, where there is none to wait for."""
        self.gate(self._instance, context.dagster_run)
        self._forget_another(context.dagster_run)
        if not self._waits and not daemon_is_there(self._root):
            at_once = DefaultRunCoordinator()
            at_once.register_instance(self._instance)
            return at_once.submit_run(context)
        run = super().submit_run(context)
        knock(self._root)
        return run

    def cancel_run(self, run_id: str) -> bool:
        """Cancel a run, whether it waits or runs."""
        done = super().cancel_run(run_id)
        knock(self._root)
        return done

    def _forget_another(self, run: DagsterRun) -> None:
        """Empty what Dagster's re-execution has copied of the run before; a run cannot lose a tag."""
        copied = {tag: "" for tag in _OF_ONE_RUN if run.tags.get(tag)}
        if copied:
            self._instance.add_run_tags(run.run_id, copied)

    @property
    def _root(self) -> Path:
        return Path(self._instance.root_directory)


def _check(given: dict[str, Any]) -> None:
    from dagster import DagsterInvalidConfigError

    faults = [
        f"{name} is {given[name]!r}; write a number above 0"
        for name in ("aging_seconds", "half_life_seconds", "tick_seconds", "lease_seconds")
        if not given[name] > 0
    ]
    faults += [
        f"owner_weights.{owner} is {weight!r}; write a number above 0, such as 2 for twice the share"
        for owner, weight in given["owner_weights"].items()
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0
    ]
    if given["max_concurrent_runs"] < -1:
        faults.append(f"max_concurrent_runs is {given['max_concurrent_runs']}; write -1 for no limit")
    if faults:
        raise DagsterInvalidConfigError(f"run_coordinator in dagster.yaml: {'; '.join(faults)}", [], given)
