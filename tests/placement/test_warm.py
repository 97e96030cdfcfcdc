"""Stages that start warm are what a new interpreter would be: same results, same ends, and nothing left of the last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from executors.cgroup import Cgroup
from mloc_dagster.placement.local import process, warm
from mloc_dagster.placement.local.process import Ended, run_job
from mloc_dagster.processes.sockets import listen
from mloc_dagster.spec.base import Json
from tests.definitions.conftest import installed
from tests.executors.conftest import make_random_llama
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_PROBE = '''
import os, random, signal, subprocess, sys, time
from pathlib import Path
from pydantic import BaseModel
from executors.base import Interrupted, Result

class Probe(BaseModel):
    do: str

def sees():
    import datasets, huggingface_hub.constants, torch, transformers.dynamic_module_utils, transformers.utils.hub
    handlers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP)
    handles = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
    return {
        "leads": os.getpid() == os.getpgid(0) == os.getsid(0), "folder": os.getcwd(), "umask": umask(),
        "argv": sys.argv, "orig_argv": sys.orig_argv, "main": sys.modules["__main__"].__spec__.name,
        "environment": dict(os.environ), "path": sys.path, "flags": str(sys.flags), "limits": limits(),
        "handlers": [repr(signal.getsignal(n)).split(" at ")[0] for n in handlers],
        "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "niceness": os.nice(0),
        "stdin": os.readlink("/proc/self/fd/0"), "stdout": [sys.__stdout__.encoding, sys.__stdout__.write_through],
        "handles": sorted(h for h in handles if not h.startswith(("socket:", "anon_inode:[pidfd]"))),
        "command": [part for part in Path("/proc/self/cmdline").read_text().split("\\0") if part],
        "datasets": [str(datasets.config.HF_DATASETS_CACHE), str(datasets.config.DOWNLOADED_DATASETS_PATH)],
        "modules": [transformers.utils.hub.HF_MODULES_CACHE, transformers.dynamic_module_utils.HF_MODULES_CACHE],
        "offline": [huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE],
        "threads": torch.get_num_threads(), "cuda": torch.cuda.is_initialized(), "sklearn": "sklearn" in sys.modules,
        "signalled": [line for line in open("/proc/self/status") if line.startswith(("SigIgn", "SigBlk"))],
    }

def umask():
    found = os.umask(0)
    os.umask(found)
    return found

def limits():
    import resource
    return [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_STACK)]

def draws():
    import numpy, torch
    return [random.random(), float(numpy.random.rand()), float(torch.rand(1)), os.environ.get("MY_SECRET")]

class ProbeExecutor:
    """tells what it is, or comes to the end that it is told to"""
    name, inline, uses, section, loads_torch = "probe", False, frozenset({"plugin"}), Probe, True
    def run(self, ctx):
        do = ctx.spec.plugin["do"]
        print("this is", do)
        if do == "sees":
            return Result(payload={"seen": sees()})
        if do == "draws":
            return Result(payload={"drawn": draws()})
        if do == "exits":
            os._exit(7)
        if do == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "eats":
            eaten = [bytearray(os.urandom(1 << 20)) * 64 for _ in range(64)]
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        (ctx.out / "pids").write_text(f"{os.getpid()} {child.pid}")
        end = time.monotonic() + (120 if do == "waits" else 5)
        while time.monotonic() < end:
            if ctx.stop.is_set():
                (ctx.out / "checkpoint").write_text("stored")
                raise Interrupted
            time.sleep(0.05)
        return Result(payload={"waited": True})
'''  # noqa: E501

_ASKER = """
import sys
from pathlib import Path
from mloc_dagster.placement.local.process import run_job
job = Path(sys.argv[1])
run_job(job, job.parent / "logs", report=print, cancelled=lambda: False, timeout=None, warm="cpu")
"""
_COLD = "a cold start"
_KINDS: dict[str, warm.Kind | None] = {"cold": None, "warm": "cpu"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place of its own for sockets, and the task type `probe`; no warm process is left of it."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch, installed("probe", _PROBE, folder / "site", patch):
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MLOC_STAGE_POOL_IDLE", "300")
        patch.delenv("MLOC_STAGE_POOL", raising=False)
        patch.delenv("VLLM_LOGGING_LEVEL", raising=False)  # vLLM sets it for itself where a test has loaded it
        yield folder
        for found in warm_processes(folder):
            found.kill()


@pytest.fixture
def ready(site: Path, tmp_path: Path) -> psutil.Process:
    """A warm process that listens, and nothing else of earlier tests."""
    if not listening(site):
        (tmp_path / "first").mkdir()
        log = started(probe(tmp_path / "first", "draws"))
        assert "there is no warm process yet" in log or "not ready yet" in log
        wait_for(lambda: listening(site), "the warm process to listen", 300)
    (found,) = warm_processes(site)
    return found


def warm_processes(folder: Path) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        try:
            if "executors.warm" in one.cmdline() and str(folder) in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


def listening(folder: Path) -> bool:
    return any(folder.glob("mloc-*/*.sock"))


def job_of(folder: Path, raw: dict[str, Json], **more: Json) -> Path:
    out = folder / "out"
    out.mkdir(parents=True)
    job = {"task_id": "1/s", "task_name": "t", "stage": "s", "raw": raw, "out": str(out), "on_cpu": True, **more}
    (out / "job.json").write_text(json.dumps(job))
    return out / "job.json"


def probe(folder: Path, do: str) -> Path:
    return job_of(folder, {"task_type": "probe", "plugin": {"do": do}})


def run(job: Path, kind: warm.Kind | None = "cpu", cancelled: Callable[[], bool] = lambda: False, **more: Any) -> Ended:
    options: dict[str, Any] = {"timeout": None, **more}
    return run_job(job, job.parent / "logs", report=lambda _: None, cancelled=cancelled, warm=kind, **options)


def log_of(job: Path) -> str:
    return (job.parent / "logs" / "stdout.log").read_text()


def started(job: Path) -> str:
    """Run a job that succeeds; returns its log."""
    assert run(job) == Ended(0), log_of(job)
    return log_of(job)


def payload(job: Path) -> dict[str, Any]:
    return json.loads((job.parent / "result.json").read_text())["payload"]


def pids(job: Path) -> list[int]:
    file = job.parent / "pids"
    wait_for(lambda: file.is_file() and len(file.read_text().split()) == 2, "the work to start")
    return [int(pid) for pid in file.read_text().split()]


def gone(numbers: list[int]) -> bool:
    return not any(psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE for n in numbers)


def test_it_is_in_all_that_it_sees_what_a_new_interpreter_would_be(
    ready: psutil.Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_HERE", "1")
    monkeypatch.chdir(tmp_path)
    seen = {}
    before = os.umask(0o027)
    try:
        with (tmp_path / "lock").open("a") as lock:
            for name, kind in _KINDS.items():
                job = probe(tmp_path / "same", "sees")
                assert run(job, kind, locks=(lock.fileno(),)) == Ended(0), log_of(job)
                assert _COLD not in log_of(job)
                seen[name] = payload(job)["seen"]
                (tmp_path / "same").rename(tmp_path / name)
    finally:
        os.umask(before)
    assert str(tmp_path / "lock") in seen["warm"]["handles"]
    for one in seen.values():
        one["handles"] = [handle.partition(":[")[0] for handle in one["handles"]]  # a pipe has a number of its own
    assert seen["warm"]["offline"] == [True, True] and seen["warm"]["leads"]
    assert seen["warm"]["datasets"][0].startswith(str(tmp_path))
    ours, theirs = (seen[name].pop("environment") for name in ("warm", "cold"))
    assert {key for key in ours if ours[key] != theirs.get(key)} <= {"TORCHINDUCTOR_CACHE_DIR", "VLLM_LOGGING_LEVEL"}
    assert theirs.keys() <= ours.keys()
    assert seen["warm"] == seen["cold"]


def test_stages_share_neither_random_numbers_nor_secrets(
    ready: psutil.Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "s3cr3t-77")
    first = probe(tmp_path / "one", "draws")
    assert _COLD not in started(first)
    assert b"s3cr3t-77" not in Path(f"/proc/{ready.pid}/environ").read_bytes()
    monkeypatch.delenv("MY_SECRET")
    second = probe(tmp_path / "two", "draws")
    assert _COLD not in started(second)
    *drawn, secret = payload(first)["drawn"]
    *others, nothing = payload(second)["drawn"]
    assert (secret, nothing) == ("***", None) or (secret, nothing) == ("s3cr3t-77", None)
    assert not set(drawn) & set(others)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model; without the variables that libraries set when this process loads them to make it."""
    before = dict(os.environ)
    folder = make_random_llama(tmp_path_factory.mktemp("models") / "tiny")
    for key in os.environ.keys() - before.keys():
        del os.environ[key]
    return folder


_TEXTS: list[Json] = ["ab cd ab cd", "hello world", "more of it"]
_SFT: dict[str, Json] = {
    "task_type": "sft",
    "data": {"prompts": _TEXTS},
    "training": {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 1, "learning_rate": 1e-3},
}
_INFERENCE: dict[str, Json] = {
    "task_type": "inference",
    "data": {"type": "list", "items": _TEXTS},
    "inference": {"max_tokens": 12, "temperature": 1.0, "seed": 5},
}


def test_training_and_inference_give_the_same_warm_and_cold(ready: psutil.Process, tmp_path: Path, model: Path) -> None:
    results: dict[str, list[Any]] = {}
    for name, kind in _KINDS.items():
        found = results.setdefault(name, [])
        for raw in (_SFT, _INFERENCE):
            folder = tmp_path / f"{raw['task_type']}-{name}"
            given = {**raw, "model": {"source": {"type": "local", "identifier": "tiny"}}}
            job = job_of(folder, given, model_path=str(model))
            assert run(job, kind) == Ended(0), log_of(job)
            assert _COLD not in log_of(job)
            found.append(payload(job))
    (trained, told), (again, retold) = results["cold"], results["warm"]
    losses = [entry["loss"] for entry in trained["log_history"] if "loss" in entry]
    assert len(losses) == 4
    assert losses == [entry["loss"] for entry in again["log_history"] if "loss" in entry]
    assert trained["weights_digest"] == again["weights_digest"]
    assert [item["output"] for item in told["items"]] == [item["output"] for item in retold["items"]]


@pytest.mark.parametrize(("do", "ended"), [("exits", Ended(7)), ("dies", Ended(-9))])
def test_its_end_is_told_as_of_a_child(ready: psutil.Process, tmp_path: Path, do: str, ended: Ended) -> None:
    job = probe(tmp_path, do)
    assert run(job) == ended
    assert _COLD not in log_of(job)


def test_a_cancelled_stage_stores_its_state_and_ends_with_its_children(ready: psutil.Process, tmp_path: Path) -> None:
    job = probe(tmp_path, "waits")
    ended = run(job, cancelled=lambda: bool((job.parent / "pids").exists() and pids(job)))
    assert ended == Ended(143, cancelled=True)
    assert (job.parent / "checkpoint").read_text() == "stored"
    wait_for(lambda: gone(pids(job)), "its child to end")
    assert _COLD not in log_of(job)


def test_a_stage_that_takes_too_long_is_ended(ready: psutil.Process, tmp_path: Path) -> None:
    job = probe(tmp_path, "waits")
    assert run(job, timeout=3) == Ended(143, timed_out=True)
    assert gone(pids(job)) and _COLD not in log_of(job)


def test_a_stage_ends_with_the_process_that_asked_for_it(ready: psutil.Process, tmp_path: Path) -> None:
    job = probe(tmp_path, "waits")
    asker = subprocess.Popen([sys.executable, "-c", _ASKER, str(job)], stdout=subprocess.DEVNULL)
    stage, _ = pids(job)
    assert [one.pid for one in warm.stages_of([asker.pid])] == [stage]
    asker.kill()
    asker.wait()
    wait_for(lambda: gone(pids(job)), "the stage to end")
    assert (job.parent / "checkpoint").exists() and psutil.pid_exists(ready.pid)
    assert _COLD not in log_of(job)


def test_more_memory_than_its_control_group_has_is_told(ready: psutil.Process, tmp_path: Path) -> None:
    group = Cgroup.make(memory_bytes=1 << 30)
    if group is None:
        pytest.skip("this user cannot make a control group")
    group.end()
    job = probe(tmp_path, "eats")
    assert run(job, memory_bytes=512 << 20) == Ended(-9, out_of_memory=True)
    assert _COLD not in log_of(job)


def test_a_killed_warm_process_takes_no_stage_along(ready: psutil.Process, site: Path, tmp_path: Path) -> None:
    job = probe(tmp_path, "rests")
    killed: list[bool] = []

    def kill_at_half() -> bool:
        if not killed and (job.parent / "pids").exists():
            ready.kill()
            killed.append(True)
        return False

    assert run(job, cancelled=kill_at_half) == Ended(0)
    assert killed and _COLD not in log_of(job) and payload(job) == {"waited": True}
    wait_for(lambda: gone([ready.pid]), "the warm process to be gone")
    for left in site.glob("mloc-*/*.sock"):
        left.unlink()


def test_it_ends_when_its_code_changes_and_the_stage_starts_cold(
    ready: psutil.Process, site: Path, tmp_path: Path
) -> None:
    info = site / "site" / "other-1.0.dist-info"
    info.mkdir()
    try:
        log = started(probe(tmp_path / "one", "draws"))
    finally:
        info.rmdir()
    assert f"{_COLD}: {site / 'site'} has changed since the libraries were loaded" in log
    wait_for(lambda: gone([ready.pid]), "the stale process to end")


def test_it_ends_when_its_socket_is_gone(ready: psutil.Process, site: Path) -> None:
    for address in site.glob("mloc-*/*.sock"):
        address.unlink()
    wait_for(lambda: gone([ready.pid]), "the process to end")


def test_without_one_a_stage_starts_cold_and_says_why(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_STAGE_POOL", "0")
    assert f"{_COLD}: MLOC_STAGE_POOL is 0" in started(probe(tmp_path / "off", "draws"))
    monkeypatch.delenv("MLOC_STAGE_POOL")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(warm, "_LEAST_MEMORY", 1 << 60)
    assert "too little for a warm process" in started(probe(tmp_path / "little", "draws"))
    (tmp_path / f"mloc-{os.getuid()}").chmod(0o755)
    assert "is not a folder that only this user can open" in started(probe(tmp_path / "open", "draws"))
    assert not warm_processes(tmp_path)


def test_a_process_that_does_not_answer_costs_a_cold_start(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(warm, "_ANSWER_SECONDS", 0.5)
    name = warm.surroundings.name(process._environment(), on_gpu=False)
    with listen(warm.surroundings.folder() / f"{name}.sock"):
        begun = time.monotonic()
        assert f"{_COLD}: TimeoutError" in started(probe(tmp_path / "job", "draws"))
    assert time.monotonic() - begun < 120


def test_it_ends_when_nobody_asks(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("MLOC_STAGE_POOL_IDLE", "1")
    started(probe(tmp_path / "job", "draws"))
    (found,) = warm_processes(tmp_path)
    assert found.ppid() != os.getpid() and os.getsid(found.pid) != os.getsid(0)
    wait_for(lambda: gone([found.pid]), "the process to end", 300)
    (log,) = tmp_path.glob("mloc-*/*.log")
    assert "Traceback" not in log.read_text() and not listening(tmp_path)
