"""What is read of pods."""

from __future__ import annotations

from mloc_dagster.placement.k8s.objects import Pod
from mloc_dagster.placement.k8s.states import ending_of


def test_the_state_is_that_of_the_stage_whatever_runs_beside_it() -> None:
    beside = {"name": "istio-proxy", "state": {"terminated": {"exitCode": 0}}}
    stage = {"name": "stage", "state": {"running": {}}}
    pod = Pod.model_validate({"metadata": {"name": "p"}, "status": {"containerStatuses": [beside, stage]}})
    assert pod.state.running is not None and ending_of(None, pod) is None
