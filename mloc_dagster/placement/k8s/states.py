"""What Job and pod tell: what an attempt waits for, and how it ended, in the words of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.k8s.objects import Job, Pod, Terminated, Waiting
from mloc_dagster.placement.remote.carrier import Ending

_NEVER_STARTS = ("InvalidImageName", "ErrImageNeverPull")
_NO_SUCH_IMAGE = ("not found", "manifest unknown", "does not exist", "repository name not known")
_ON_ITS_WAY = ("", "ContainerCreating", "PodInitializing")
_KILLED = 137


@dataclass(frozen=True)
class Wait:
    """Why an attempt has not begun. `counts`: whether the time counts; `hopeless`: whether it will not begin at all."""

    words: str
    cause: Cause = Cause.INTERNAL
    counts: bool = True
    hopeless: bool = False


def wait_of(job: Job, pod: Pod | None) -> Wait | None:
    """Return what an attempt waits for; None: it has begun, or has ended."""
    if ending_of(job, pod) is not None:
        return None
    if pod is None:
        if job.spec.suspend:
            return Wait("waits in its queue: the Job is suspended", counts=False)
        return Wait("waits for its pod to be made")
    if pod.state.begun:
        return None
    waiting = pod.state.waiting
    if waiting is not None and waiting.reason not in _ON_ITS_WAY:
        return _held_up(waiting)
    if pod.unschedulable:
        return Wait(f"finds no node: {pod.unschedulable}")
    return Wait(f"starts on {pod.spec.node_name}" if pod.spec.node_name else "waits for a node")


def ending_of(job: Job | None, pod: Pod | None, seen: Pod | None = None) -> Ending | None:
    """Return how an attempt ended, None while it runs or waits; `job` is None when it was deleted.

    `seen` is what was last seen of a pod that may be gone by now.
    """
    if pod is None:
        return _without_pod(job, seen.taken if seen is not None else "")
    if pod.state.terminated is not None:
        return _of_container(pod, pod.state.terminated, _timed_out(job))
    if pod.status.phase in ("Failed", "Unknown"):
        return Ending(None, words=f"was lost: {pod.taken or pod.status.phase}", cause=Cause.WORKER_LOST)
    return None


def lacks(pod: Pod, secret: str) -> bool:
    """Whether a pod has not begun for want of a Secret."""
    waiting = pod.state.waiting
    return waiting is not None and waiting.reason == "CreateContainerConfigError" and f'"{secret}"' in waiting.message


def first_wait(job: Job, pods: Sequence[Pod | None]) -> Wait | None:
    """Return what the first pod waits for that has not begun; None when all have, or when one has ended."""
    if ending_of_all(job, pods, pods) is not None:
        return None
    return next((wait for pod in pods if (wait := wait_of(job, pod)) is not None), None)


def ending_of_all(job: Job | None, pods: Sequence[Pod | None], seen: Sequence[Pod | None]) -> Ending | None:
    """Return how the pods of an attempt, in the order of their ranks, ended together.

    None until the first one has ended: the log of the attempt is its log. The ending of all is that of the pod which
    failed first, since the cluster and the lack of it then end the others.
    """
    endings = [ending_of(job, pod, before) for pod, before in zip(pods, seen, strict=True)]
    if len(endings) == 1 or endings[0] is None:
        return endings[0]
    failed = [rank for rank, ending in enumerate(endings) if ending is not None and ending.code != 0]
    if not failed:
        return None if None in endings else endings[0]
    first = min(failed, key=lambda rank: _when(pods[rank]))
    ending = endings[first]
    assert ending is not None
    return ending if first == 0 or not ending.words else replace(ending, words=f"(replica {first}) {ending.words}")


def _when(pod: Pod | None) -> tuple[bool, str]:
    """Sorts pods that failed by themselves, or were taken away, before those that were deleted for it; then by time."""
    if pod is None or pod.state.terminated is None:
        return (True, "")
    followed = pod.metadata.deletion_timestamp is not None and not pod.taken
    return (followed, pod.state.terminated.finished_at)


def _held_up(waiting: Waiting) -> Wait:
    words = f"{waiting.reason}: {waiting.message}" if waiting.message else waiting.reason
    if "Image" not in waiting.reason and waiting.reason != "RegistryUnavailable":
        return Wait(f"cannot be started: {words}")
    never = waiting.reason in _NEVER_STARTS
    wrong = never or any(sign in waiting.message.lower() for sign in _NO_SUCH_IMAGE)
    return Wait(f"has no image: {words}", Cause.USER if wrong else Cause.INTERNAL, hopeless=never)


def _without_pod(job: Job | None, taken: str) -> Ending | None:
    if _timed_out(job):
        return _deadline(None)
    if taken and (job is None or job.over):
        return Ending(None, words=f"was taken away: {taken}", cause=Cause.WORKER_LOST)
    if job is None:
        return Ending(None, words="was deleted", cause=Cause.WORKER_LOST)
    if job.failed is not None:
        words = f"has lost its pod: {job.failed.reason}: {job.failed.message}"
        return Ending(None, words=words, cause=Cause.WORKER_LOST)
    if job.over:
        return Ending(None, words="has ended, and its pod is gone", cause=Cause.WORKER_LOST)
    return None


def _of_container(pod: Pod, ended: Terminated, timed_out: bool) -> Ending:
    code = ended.exit_code
    if code == 0:
        return Ending(0)
    if timed_out:
        return _deadline(code)
    if ended.reason == "OOMKilled":
        return Ending(_KILLED, out_of_memory=True)
    if pod.taken or pod.metadata.deletion_timestamp is not None:
        words = f"was taken away: {pod.taken or 'its pod was deleted'} (exit code {code})"
        return Ending(code, words=words, cause=Cause.WORKER_LOST)
    if ended.reason in ("StartError", "ContainerCannotRun"):
        return Ending(code, words=f"cannot be started: {ended.reason}: {ended.message}", cause=Cause.USER)
    return Ending(code)


def _timed_out(job: Job | None) -> bool:
    return job is not None and job.failed is not None and job.failed.reason == "DeadlineExceeded"


def _deadline(code: int | None) -> Ending:
    words = "ran longer than its Job may (DeadlineExceeded): timeoutSeconds, its wait for a node, inputs and results"
    return Ending(code, words=words, cause=Cause.TIMED_OUT)
