"""What the stages of a run need together."""

from __future__ import annotations

from mloc_dagster.placement.workers.need import WHOLE, GpuNeed, Need, need_of
from mloc_dagster.spec.stage import StageSpec

GIB = 1 << 30


def stage(uses_gpu: bool = True, **hardware: object) -> tuple[StageSpec, bool]:
    parts = {"task_type": "echo", "resources": {"hardware": hardware}}
    return StageSpec.model_validate(parts), uses_gpu


def test_the_largest_of_each() -> None:
    stages = [
        stage(cpu=4, memory="8Gi", gpu={"type": "a100", "count": 2}),
        stage(cpu="500m", memory="64Gi", gpu={"type": "a100", "memory": "40Gi", "share": 0.5}),
        stage(gpu={"type": "l4"}),
        stage(gpu={"count": 0}),
    ]
    gpus = (GpuNeed("a100", 2, 40 * GIB), GpuNeed("l4", 1))
    assert need_of(stages) == Need(4 * WHOLE, 64 * GIB, gpus)


def test_any_device_is_one_of_those_that_are_there_anyway() -> None:
    named, open_ = stage(gpu={"type": "a100", "count": 2}), stage(gpu={"count": 2})
    assert need_of([named, open_]).gpus == (GpuNeed("a100", 2),)
    more = stage(gpu={"count": 3})
    assert need_of([named, more]).gpus == (GpuNeed("a100", 2), GpuNeed("any", 3))


def test_who_asks_for_no_gpu_takes_one_where_there_is_one() -> None:
    assert need_of([stage()]) == Need(gpus=(GpuNeed("any", 1),), optional=True)
    assert need_of([stage(uses_gpu=False)]) == Need()
    assert need_of([stage(gpu={"count": 0})]) == Need()
    forced = StageSpec.model_validate(
        {"task_type": "echo", "enforce_cpu": True, "resources": {"hardware": {"gpu": {}}}}
    )
    assert need_of([(forced, True)]) == Need()


def test_it_can_be_written_and_read() -> None:
    need = need_of([stage(cpu=1.5, memory="1Gi", gpu={"type": "l4", "share": 0.25})])
    assert need.gpus[0].share == 250 and Need.from_dict(need.as_dict()) == need
    assert str(need) == "1 × 0.25 of l4 GPU, 1.5 cores, 1.0 GiB"
