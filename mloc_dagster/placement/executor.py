"""Steps of one run side by side: each in a child forked from the run's process, a lone one in that process itself.

The loop is that of Dagster's multiprocess executor, over its own child processes; only what a child does to begin is
not: it has the job and the instance already, where a spawned one imports and opens everything anew.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from dagster import DagsterEvent, DagsterInstance, Executor, Field, InitExecutorContext, Int, Noneable, executor
from dagster._core.definitions.job_base import IJob
from dagster._core.errors import DagsterExecutionInterruptedError, DagsterSubprocessError
from dagster._core.events import EngineEventData
from dagster._core.execution.api import create_execution_plan, execute_plan_iterator
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.objects import StepRetryData
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.child_process_executor import (
    ChildProcessCommand,
    ChildProcessCrashException,
    ChildProcessSystemErrorEvent,
    execute_child_process_command,
)
from dagster._utils import get_run_crash_explanation
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster_shared.error import SerializableErrorInfo

from executors.parent import end_with_parent
from mloc_dagster.placement import inventory
from mloc_dagster.placement.failures.cause import ATTEMPTS, CAUSE, Cause, backoff_seconds
from mloc_dagster.placement.ledger.grant import Grant
from mloc_dagster.spec.resources import Retry
from mloc_dagster.store.sqlite.event_log import PooledEventLogStorage

DEVICE = "mloc/device"
"""Op tag of a step that takes a GPU where there is one."""
RETRY = "mloc/retry"
"""Op tag: the stage's `retry` section, for a step whose process dies; a retry policy of Dagster's would also have a
cancelled step tried again."""
AT_ONCE = "MLOC_STEPS_AT_ONCE"

_ON = "mloc/on"
_LAST_SECONDS = 5.0
"""How long a run that failed waits for children to store their last events."""
_INTERRUPTED = {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}


@executor(
    name="side_by_side",
    config_schema={
        "max_concurrent": Field(
            Noneable(Int), default_value=None, description=f"Steps at a time; default: {AT_ONCE}, else one a CPU."
        )
    },
)
def side_by_side(context: InitExecutorContext) -> Executor:
    """Steps that wait for nothing run at the same time, those that take a GPU one by one."""
    chosen = context.executor_config.get("max_concurrent")
    return SideBySide(1 if context.instance.is_ephemeral else _limit(chosen or os.environ.get(AT_ONCE)))


def _limit(chosen: object) -> int:
    """The number of steps that was asked for; one a CPU for what is no number above 0."""
    text = str(chosen or "").strip()
    return int(text) if text.isdecimal() and int(text) > 0 else os.cpu_count() or 1


class SideBySide(Executor):
    """At most `limit` steps at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    @property
    def retries(self) -> RetryMode:
        """Steps may ask to be tried again."""
        return RetryMode.ENABLED

    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[DagsterEvent]:
        """Execute a plan; yields the events of all of its steps."""
        with ExitStack() as stack:
            slots = InstanceConcurrencyContext(plan_context.instance, plan_context.dagster_run)
            active = stack.enter_context(
                ActiveExecution(
                    execution_plan,
                    retry_mode=self.retries,
                    max_concurrent=self._limit,
                    tag_concurrency_limits=_one_gpu_step(plan_context),
                    instance_concurrency_context=stack.enter_context(slots),
                )
            )
            orchestra = _Orchestra(self, plan_context, execution_plan, active, self._limit)
            stack.callback(orchestra.end)
            yield from orchestra.play()


def _one_gpu_step(plan_context: PlanOrchestrationContext) -> list[dict[str, Any]]:
    """Two steps of one run must not take the same GPU."""
    on_cpu = plan_context.dagster_run.tags.get(_ON) == "cpu" or inventory.cpu_forced()
    grant = Grant.of_run(plan_context.dagster_run)
    devices = inventory.gpus() if grant is None else grant.devices
    return [] if on_cpu or not devices else [{"key": DEVICE, "value": "gpu", "limit": 1}]


class _Orchestra:
    """The steps of a run that is being executed."""

    def __init__(
        self,
        owner: Executor,
        context: PlanOrchestrationContext,
        plan: ExecutionPlan,
        active: ActiveExecution,
        limit: int,
    ) -> None:
        self._owner, self._context, self._plan, self._active, self._limit = owner, context, plan, active, limit
        self._playing: dict[str, _Child] = {}
        self._waiting_to_retry: set[str] = set()
        self._errors: list[SerializableErrorInfo] = []
        self._stopping = False

    def play(self) -> Iterator[DagsterEvent]:
        while self._playing or not (self._stopping or self._active.is_complete):
            if self._active.check_for_interrupts():
                self._stop()
            if not self._stopping:
                yield from self._begin()
            for child in list(self._playing.values()):
                yield from self._listen(child)
            yield from self._active.plan_events_iterator(self._context)
            if not self._playing and not self._stopping and not self._active.is_complete:
                self._active.sleep_til_ready()
        if self._stopping and all(error.cls_name in _INTERRUPTED for error in self._errors):
            raise DagsterExecutionInterruptedError
        if self._errors:
            texts = "\n".join(error.to_string() for error in self._errors)
            raise DagsterSubprocessError(f"steps ended without a result:\n{texts}", subprocess_error_infos=self._errors)

    def end(self) -> None:
        """End the children that are left when the run's own process fails."""
        for child in self._playing.values():
            child.signal(signal.SIGTERM)
        for child in self._playing.values():
            child.join(_LAST_SECONDS)

    def _stop(self) -> None:
        self._stopping = True
        self._active.mark_interrupted()
        for child in self._playing.values():
            child.signal(signal.SIGTERM)

    def _begin(self) -> Iterator[DagsterEvent]:
        """Begin all steps that can; returns when none can now."""
        while steps := self._active.get_steps_to_execute(limit=self._limit - len(self._playing)):
            yield from self._active.concurrency_event_iterator(self._context)
            self._waiting_to_retry.difference_update(step.key for step in steps)
            if len(steps) == 1 and not self._playing and not self._waiting_to_retry:
                yield from self._solo(steps[0])
                continue
            for step in steps:
                self._playing[step.key] = _Child(_Step(self._context, self._plan, step, self._active.get_known_state()))
        yield from self._active.concurrency_event_iterator(self._context)

    def _solo(self, step: ExecutionStep) -> Iterator[DagsterEvent]:
        """Execute a step here: nothing else can run beside it."""
        work = _Step(self._context, self._plan, step, self._active.get_known_state())
        for event in work.events(self._context.instance):
            yield self._noted(event)
        self._active.verify_complete(self._context, step.key)
        yield from self._active.plan_events_iterator(self._context)

    def _listen(self, child: _Child) -> Iterator[DagsterEvent]:
        """Take one event of a child, or see that it has ended."""
        key = child.step.key
        try:
            event = child.next_event()
            if event is not None:
                yield self._noted(event)
            return
        except StopIteration:
            self._errors.extend(child.errors)
        except ChildProcessCrashException as crash:
            yield from self._crashed(child.step, crash)
        del self._playing[key]
        self._active.verify_complete(self._context, key)

    def _crashed(self, step: ExecutionStep, crash: ChildProcessCrashException) -> Iterator[DagsterEvent]:
        error = serializable_error_info_from_exc_info(sys.exc_info())
        context = self._context.for_step(step)
        what = get_run_crash_explanation(prefix=f"The process of step {step.key}", exit_code=crash.exit_code or 0)
        yield DagsterEvent.engine_event(context, what, EngineEventData.engine_error(error))
        state = self._active.get_known_state()
        attempt = state.get_retry_state().get_attempt_count(step.key) + 1
        retry = Retry.model_validate_json(step.tags[RETRY]) if RETRY in step.tags else Retry(max_retries=0)
        if not self._stopping and attempt <= Cause.WORKER_LOST.retries(retry.max_retries):
            wait = backoff_seconds(retry.backoff, attempt)
            yield self._noted(DagsterEvent.step_retry_event(context, StepRetryData(error=error, seconds_to_wait=wait)))
            return
        tags = {CAUSE: Cause.WORKER_LOST.value, ATTEMPTS: str(attempt)}
        self._context.instance.add_run_tags(self._context.run_id, tags)
        yield self._noted(self._owner.log_failure_or_retry_event_after_error(context, error, state))

    def _noted(self, event: DagsterEvent) -> DagsterEvent:
        self._active.handle_event(event)
        if event.is_step_up_for_retry and event.step_key:
            self._waiting_to_retry.add(event.step_key)
        return event


class _Step(ChildProcessCommand):
    """One step, as it is executed here or in a child that was forked from here."""

    def __init__(
        self, context: PlanOrchestrationContext, plan: ExecutionPlan, step: ExecutionStep, state: KnownExecutionState
    ) -> None:
        self.step, self._parent = step, os.getpid()
        self._context, self._plan, self._state = context, plan, state

    def events(self, instance: DagsterInstance) -> Iterator[DagsterEvent]:
        """Execute the step in this process."""
        job: IJob = self._context.job
        plan = create_execution_plan(
            job,
            self._context.run_config,
            step_keys_to_execute=[self.step.key],
            known_state=self._state,
            repository_load_data=self._plan.repository_load_data,
        )
        return execute_plan_iterator(
            plan,
            job,
            self._context.dagster_run,
            instance,
            retry_mode=RetryMode.ENABLED.for_inner_plan(),
            run_config=self._context.run_config,
        )

    def execute(self) -> Iterator[DagsterEvent]:
        """Execute the step in a child; it does not outlive the run's process."""
        end_with_parent(signal.SIGKILL, self._parent)
        instance = self._context.instance
        if isinstance(instance.event_log_storage, PooledEventLogStorage):  # knows what to do after a fork
            yield from self.events(instance)
            return
        with DagsterInstance.from_ref(instance.get_ref()) as own:
            yield from self.events(own)


class _Child:
    """A process that executes a step."""

    def __init__(self, command: _Step) -> None:
        import multiprocessing

        self.step = command.step
        self.errors: list[SerializableErrorInfo] = []
        self._process: Any = None
        self._messages = execute_child_process_command(multiprocessing.get_context("fork"), command)

    def next_event(self) -> DagsterEvent | None:
        """Wait a moment for an event; raises StopIteration at the end, ChildProcessCrashException at a crash."""
        message = next(self._messages)
        if isinstance(message, ChildProcessSystemErrorEvent):
            self.errors.append(message.error_info)
        elif hasattr(message, "is_alive"):
            self._process = message
        return message if isinstance(message, DagsterEvent) else None

    def join(self, seconds: float) -> None:
        """Wait for its end, `seconds` at most."""
        if self._process is not None:
            self._process.join(seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it has begun and not ended."""
        if self._process is not None and self._process.is_alive():
            os.kill(self._process.pid, number)
