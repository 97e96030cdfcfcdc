"""Where stages land on declared workers, told at plan time and at queue time alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.k8s.manifest import job_manifest
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.local.preview import preview
from mloc_dagster.placement.queue.asked import may_use_gpu
from mloc_dagster.placement.queue.items import Kept, Policy, Queued, Running
from mloc_dagster.placement.queue.order import Order
from mloc_dagster.placement.remote.carrier import Order as RemoteOrder
from mloc_dagster.placement.workers.cluster import Kubernetes
from mloc_dagster.placement.workers.declared import fleet_of
from mloc_dagster.placement.workers.need import GpuNeed, Need, need_of
from mloc_dagster.placement.workers.room import Worker, settled
from mloc_dagster.store.home import Home
from tests.kubernetes_api import Node, unfit
from tests.placement.conftest import plan_of

WORKERS = """\
artifacts: s3://artifacts
workers:
  - {name: cpu-a, cpu: 8, memory: 32Gi, docker: {host: "unix:///a", image: mloc}}
  - {name: cpu-big, cpu: 32, memory: 256Gi, docker: {host: "unix:///b", image: mloc}}
  - name: l4-box
    cpu: 16
    memory: 64Gi
    gpus: [{type: l4, indexes: [0, 1]}]
    docker: {host: "ssh://me@l4-box", image: mloc}
  - name: a100-box
    cpu: 64
    memory: 512Gi
    gpus: [{type: a100-80gb, indexes: [0, 1, 2, 3]}]
    docker: {host: "tcp://a100-box:2376", tls: {ca: ca.pem, cert: cert.pem, key: key.pem}, image: mloc}
"""
CLUSTERS = """\
artifacts: s3://artifacts
workers:
  - {name: cpu-a, cpu: 8, memory: 32Gi, kubernetes: {image: mloc, node_selector: {pool: small}}}
  - {name: cpu-big, cpu: 32, memory: 256Gi, kubernetes: {image: mloc, node_selector: {pool: big}}}
  - name: l4-box
    cpu: 16
    memory: 64Gi
    gpus: [{type: l4, count: 2}]
    kubernetes: {image: mloc, context: other, tolerations: [{key: nvidia.com/gpu, operator: Exists}]}
  - name: a100-box
    cpu: 64
    memory: 512Gi
    gpus: [{type: a100-80gb, count: 4}]
    kubernetes:
      image: mloc
      tolerations: [{key: nvidia.com/gpu, operator: Exists}, {key: team, value: ml, effect: NoSchedule}]
"""
NODES = [
    Node("cpu-a", {"pool": "small"}, allocatable={"cpu": "8", "memory": "32Gi"}),
    Node("cpu-big", {"pool": "big"}, allocatable={"cpu": "32", "memory": "256Gi"}),
    Node("l4-box", {"nvidia.com/gpu.product": "NVIDIA-L4"}, [("nvidia.com/gpu", "true")],
         {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "2"}),
    Node("a100-box", {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}, [("nvidia.com/gpu", "true"), ("team", "ml")],
         {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "4"}),
]  # fmt: skip
SFT = """\
  taskType: sft
  model: {source: {type: local, identifier: /m}}
  data: {prompts: [{prompt: a, response: b}]}
"""
CPU, NOWHERE = "{gpu: {count: 0}}", "nowhere"
CASES = {
    "cpu only": (["echo"], [CPU], "cpu on cpu-a"),
    "cpu only, much memory": (["echo"], ["{memory: 100Gi, gpu: {count: 0}}"], "cpu on cpu-big"),
    "cpu only, more cores than the small one": (["echo"], ["{cpu: 12, gpu: {count: 0}}"], "cpu on cpu-big"),
    "any gpu is the smallest": (["inference"], ["{gpu: {type: any, count: 1}}"], "gpu 0 on l4-box"),
    "by memory": (["inference"], ["{gpu: {type: any, count: 1, memory: 40Gi}}"], "gpu 0 on a100-box"),
    "by type, as nvidia-smi writes it": (
        ["inference"], ["{gpu: {type: NVIDIA A100-SXM4-80GB, count: 1}}"], "gpu 0 on a100-box"),
    "several": (["inference"], ["{gpu: {type: any, count: 3}}"], "gpu 0, gpu 1, gpu 2 on a100-box"),
    "what leaves it open takes one": (["inference"], ["{}"], "gpu 0 on l4-box"),
    "too many": (["inference"], ["{gpu: {type: l4, count: 3}}"], NOWHERE),
    "a kind that nobody has": (["inference"], ["{gpu: {type: h100, count: 1}}"], NOWHERE),
    "more memory than any device": (["inference"], ["{gpu: {type: any, count: 1, memory: 100Gi}}"], NOWHERE),
    "mixed: each stage its own": (
        ["inference", "inference"],
        ["{gpu: {type: l4, count: 2}}", "{gpu: {type: a100-80gb, count: 4}}"],
        "gpu 0, gpu 1 on l4-box",
    ),
}  # fmt: skip


@pytest.fixture(params=[WORKERS, CLUSTERS], ids=["docker", "kubernetes"])
def declared(own_home: Home, request: pytest.FixtureRequest) -> Home:
    own_home.root.mkdir(parents=True)
    (own_home.root / "workers.yaml").write_text(request.param)
    return own_home


@pytest.mark.parametrize("name", CASES)
def test_the_table(name: str, declared: Home, tmp_path: Path) -> None:
    types, hardware, where = CASES[name]
    more = {"echo": "echo: 1", "inference": "model: {source: {type: local, identifier: /m}}, inference: {prompts: [a]}"}
    stages = [
        f"    - {{name: s{number}, spec: {{taskType: {kind}, {more[kind]}, resources: {{hardware: {hard}}}}}}}"
        for number, (kind, hard) in enumerate(zip(types, hardware, strict=True))
    ]
    plan = plan_of("\n".join(["  stages:", *stages]) + "\n", tmp_path)
    steps = [step for step in preview(plan, declared, fresh=False) if step.kind == "stage"]
    assert steps[0].device == where, steps
    assert (steps[0].state == "refused") == (where == NOWHERE)

    specs = [stage.spec for stage in plan.task.stages]
    parts = tuple(need_of([(spec, may_use_gpu(spec.task_type))]) for spec in specs)
    whole = need_of([(spec, may_use_gpu(spec.task_type)) for spec in specs])
    order = Order(Policy())
    order.add(Queued("run-1", "ann", 0.0, whole, stages=parts))
    decisions = order.decide(1.0, fleet_of(declared).workers, [])
    if where == NOWHERE:
        [(_, reason)] = decisions.waiting
        assert reason == f"needs {parts[0].gpus[0]}, which no worker has"
        assert f"needs {parts[0].gpus[0]}, which no worker has: cpu-a has no GPU" in steps[0].notes[0]
        return
    [start] = decisions.starts
    assert where.endswith(f" on {start.worker}") and start.split == (len(types) > 1)
    found = ", ".join(f"gpu {index}" for index in start.devices) or "cpu"
    assert where.startswith(f"{found} on ")
    settled_need = settled(parts[0], fleet_of(declared).workers)
    assert settled_need is not None
    if isinstance(fleet_of(declared).engines[start.worker], Kubernetes):
        assert scheduled(declared, start.worker, settled_need, tuple(start.devices)) == start.worker


def scheduled(home: Home, worker: str, need: Need, devices: tuple[int, ...]) -> str:
    """The node that a scheduler gives to the pod of a stage."""
    fleet = fleet_of(home)
    declared = fleet.engines[worker]
    assert isinstance(declared, Kubernetes)
    gpu = next((device.name for one in fleet.workers if one.name == worker for device in one.devices), None)
    order = RemoteOrder(
        job="j", attempt="a", store="s3://s", key="k", environment={}, cpu=need.cpu, share=need.cpu,
        memory=need.memory or declared.default_memory, devices=devices,
    )  # fmt: skip
    pod = job_manifest(declared, order, gpu)["spec"]["template"]
    [found] = [node.name for node in NODES if not unfit(pod, node, [])]
    return found


def test_a_pod_that_does_not_bear_a_taint_or_asks_for_more_finds_no_node(own_home: Home) -> None:
    own_home.root.mkdir(parents=True)
    (own_home.root / "workers.yaml").write_text(CLUSTERS.replace(", {key: team, value: ml, effect: NoSchedule}", ""))
    with pytest.raises(ValueError, match="not enough values"):
        scheduled(own_home, "a100-box", Need(gpus=(GpuNeed("a100-80gb", 1),)), (0,))
    with pytest.raises(ValueError, match="not enough values"):
        scheduled(own_home, "l4-box", Need(gpus=(GpuNeed("l4", 3),)), (0, 1, 2))


_REPLICAS = "asks for resources.replicas 2, which are containers of their own on l4-box"
_REFUSED = {
    "a part of a device of a cluster": (
        "{hardware: {gpu: {type: l4, share: 0.5}}}", "{}", "asks for 0.5 of a GPU, and l4-box is a cluster"),
    "devices that replicas cannot share": (
        "{replicas: 2, hardware: {gpu: {type: l4, count: 1}}}", "{}",
        f"{_REPLICAS} and share hardware.gpu.count 1 evenly; ask for a multiple, such as 2"),
    "replicas of a part of a device": (
        "{replicas: 2, hardware: {gpu: {type: l4, count: 2, share: 0.5}}}", "{}", f"{_REPLICAS}, and for 0.5 of a GPU"),
    "replicas that hold the weights in pieces": (
        "{replicas: 2, hardware: {gpu: {type: l4, count: 2}}}", "{fsdp: full_shard}",
        f"{_REPLICAS}, and for DeepSpeed or FSDP"),
}  # fmt: skip


@pytest.mark.parametrize("name", _REFUSED)
def test_what_no_container_can_have_is_refused_at_plan_time(name: str, declared: Home, tmp_path: Path) -> None:
    resources, training, told = _REFUSED[name]
    plan = plan_of(f"{SFT}  training: {training}\n  resources: {resources}\n", tmp_path)
    [step] = [step for step in preview(plan, declared, fresh=False) if step.kind == "stage"]
    carried = "cluster" in name and not isinstance(fleet_of(declared).engines["l4-box"], Kubernetes)
    assert (step.state == "refused", told in " ".join(step.notes)) == (not carried, not carried)


def test_replicas_are_claimed_all_at_once(declared: Home, tmp_path: Path) -> None:
    hardware = "{cpu: 4, memory: 100Gi, gpu: {type: a100-80gb, count: 4}}"
    plan = plan_of(f"{SFT}  resources: {{replicas: 2, hardware: {hardware}}}\n", tmp_path)
    [step] = [step for step in preview(plan, declared, fresh=False) if step.kind == "stage"]
    assert (step.state, step.device) == ("to run", "gpu 0, gpu 1, gpu 2, gpu 3 on a100-box")
    need = need_of([(stage.spec, True) for stage in plan.task.stages])
    assert need == Need(8000, 200 << 30, (GpuNeed("a100-80gb", 4),))
    order = Order(Policy())
    order.add(Queued("run-1", "ann", 0.0, need))
    taken = Running("other", "bob", "a100-box", Need(gpus=(GpuNeed("a100-80gb", 1),)), {0: 1000}, 0.0)
    assert order.decide(1.0, fleet_of(declared).workers, [taken]).starts == [], "three free devices are not taken"
    [start] = order.decide(1.0, fleet_of(declared).workers, []).starts
    assert dict(start.devices) == dict.fromkeys(range(4), 1000)


def test_a_worker_that_takes_no_runs_is_passed_over(declared: Home) -> None:
    workers = [replace(one, state="cordoned") if one.name == "l4-box" else one for one in fleet_of(declared).workers]
    order = Order(Policy())
    order.add(Queued("any", "ann", 0.0, Need(gpus=(GpuNeed("any", 1),))))
    order.add(Queued("l4", "ann", 0.0, Need(gpus=(GpuNeed("l4", 1),))))
    decisions = order.decide(1.0, workers, [])
    assert [(start.item.run_id, start.worker) for start in decisions.starts] == [("any", "a100-box")]
    assert [(item.run_id, reason) for item, reason in decisions.waiting] == [
        ("l4", "needs 1 × l4 GPU: the workers that have it take no new runs")
    ]


def test_less_than_asked_is_told(declared: Home, tmp_path: Path) -> None:
    plan = plan_of("  taskType: echo\n  echo: 1\n  resources: {hardware: {memory: 2Ti, gpu: {count: 0}}}\n", tmp_path)
    [step] = preview(plan, declared, fresh=False)
    assert step.notes == ("2.0 TiB of memory asked for, no worker that fits has more than 512.0 GiB",)


def test_a_stage_takes_what_its_run_held_to_begin_with(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.register("here", [Worker("a", 1000, 1 << 30), Worker("b", 2000, 2 << 30)], 0.0)
    ledger.register("there", [Worker("c", 9000, 9 << 30)], 0.0)
    held = ledger.claim("run-1", "ann", Need(), 60, worker="a")
    assert held is not None

    def take(stage: str, need: Need, avoid: str = "") -> str | None:
        lease = ledger.claim_stage("run-1", stage, "ann", need, 60, among={"a", "b"}, avoid=avoid)
        return lease.worker if lease else None

    assert take("s0", Need()) == "a", "the run had it only to begin with"
    assert take("s1", Need()) == take("s2", Need()) == "b"
    assert take("s3", Need()) is None, "c belongs to another control plane"
    assert take("s0", Need()) is None, "s3 waits for it"
    ledger.give_up("run-1", "s3")
    assert take("s0", Need(), avoid="a") == "a", "its own seat is free for its next attempt, and nothing else is"
    _, leases = ledger.snapshot()
    assert {lease.run for lease in leases} == {"run-1"} and ledger.renew(held.token, 60)
    assert [ledger.release(lease.token) for lease in leases if lease.run_id == "run-1/s2"] == [True]
    assert take("s0", Need(), avoid="a") == "b"


def test_room_is_kept_for_the_stage_that_waits_longest(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    worker = Worker("a", 4000, 8 << 30)
    ledger.register("here", [worker, Worker("b", 1000, 8 << 30)], 0.0)

    def take(run: str, cpu: int) -> int | None:
        lease = ledger.claim_stage(run, "s", "ann", Need(cpu=cpu), 60, among={"a", "b"})
        return lease.token if lease and lease.worker == "a" else None

    early = [take("early-1", 3000), take("early-2", 1000)]
    assert all(early) and take("big", 3000) is None, "it waits from here on"
    [wait] = ledger.waits()
    assert (wait.run_id, wait.worker) == ("big/s", "a")
    assert ledger.release(early[0] or 0)
    assert take("bigger", 4000) is None and [one.run_id for one in ledger.waits()] == ["big/s", "bigger/s"]
    assert take("small-1", 2000) is None, "two cores beside the kept ones are never free"
    assert (got := take("big", 3000)) and [one.run_id for one in ledger.waits()] == ["bigger/s", "small-1/s"]
    assert ledger.release(early[1] or 0) and take("small-1", 1500) is None
    assert ledger.release(got) and take("bigger", 4000)


def test_a_stage_that_waits_stands_in_nobodys_way_beyond_its_need(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    gpus = tuple(Device(index, "l4", 24 << 30) for index in range(2))
    ledger.register("here", [Worker("box", 8000, 64 << 30, gpus), Worker("cpu", 1000, 8 << 30)], 0.0)

    def take(run: str, gpu: int, cpu: int = 1000) -> int | None:
        need = Need(cpu=cpu, memory=0, gpus=(GpuNeed("l4", gpu),) if gpu else ())
        lease = ledger.claim_stage(run, "s", "ann", need, 60, among={"box", "cpu"})
        return lease.token if lease else None

    endless, short = take("endless", 1), take("short", 1)
    assert endless and short and take("first", 1) is None and take("second", 1) is None
    assert ledger.release(short) and take("second", 1) is None, "whichever device comes free is for the first"
    got = take("first", 1)
    assert got and take("both", 2) is None and take("core", 0) and take("cores", 0, 3000), "cores are left"
    assert ledger.release(got) and take("second", 1)
    assert [one.run_id for one in ledger.waits()] == ["both/s"]


def test_runs_of_the_queue_leave_what_is_kept_for_stages() -> None:
    worker = Worker("a", 4000, 8 << 30)
    running = [Running("r", "ann", "a", Need(cpu=2000, memory=0), {}, 0.0, 100.0)]
    kept = [Kept("big/s", "a", Need(cpu=3000, memory=0))]
    order = Order(Policy())
    order.add(Queued("long", "ann", 0.0, Need(cpu=2000, memory=0)))
    order.add(Queued("beside", "ann", 1.0, Need(cpu=1000, memory=0)))
    order.add(Queued("short", "ann", 2.0, Need(cpu=1000, memory=0), expected=50.0))
    found = order.decide(10.0, [worker], running, kept)
    assert [start.item.run_id for start in found.starts] == ["beside", "short"]
    assert [(item.run_id, reason[:32]) for item, reason in found.waiting] == [
        ("long", "room on a is kept for run big/s,")
    ]
    assert order.decide(10.0, [worker], [], kept).starts[0].item.run_id == "beside"
