"""What a container gets, and how its end is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun

from mloc_dagster.placement.failures.cause import ATTEMPTS, CAUSE
from mloc_dagster.placement.failures.faults import faults_of
from mloc_dagster.store.home import Home
from tests.definitions.conftest import installed
from tests.docker_engine import Engine
from tests.placement.conftest import Run

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

FAIL = "plugin: {how: %s, count: /tmp/count}\n  retry: {max_retries: %d, backoff: 0.1}"
_LOOK = '''
import os
from pathlib import Path
from pydantic import BaseModel
from executors.base import Result

class LookExecutor:
    """tells what it sees of its container"""
    name, inline, uses, section = "look", False, frozenset({"plugin"}), None
    def run(self, ctx):
        def first(*paths):
            return next((Path(p).read_text().strip() for p in paths if Path(p).exists()), None)
        memory = first("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
        cpu = first("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        cores = sorted(os.sched_getaffinity(0))
        shm = os.statvfs("/dev/shm")
        print("the secret is", ctx.spec.plugin["secret"])
        print("and the last line")
        return Result(payload={
            "memory": int(memory), "quota": int(cpu.split()[0]), "cores": cores, "uid": os.getuid(),
            "shm": shm.f_blocks * shm.f_frsize, "secret": ctx.spec.plugin["secret"],
            "others": sorted(name for name in os.environ if name.startswith("MLOC_TEST_")),
        })
'''


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed("look", _LOOK, tmp_path / "site", monkeypatch):
        yield


def only_message(instance: DagsterInstance, run: DagsterRun) -> str:
    [fault] = faults_of(instance, run)
    return fault.message


def test_limits_are_seen_inside_and_secrets_nowhere_else(
    run: Run, look: None, declare: Callable, instance: DagsterInstance, home: Home, engines: tuple[Engine, Engine],
    monkeypatch: pytest.MonkeyPatch, s3,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLOC_TEST_SECRET", "hunter2-and-more")
    monkeypatch.setenv("MLOC_TEST_OTHER", "not asked for")
    declare(user="1000:1000", shm_size="32Mi", cpuset="0")
    ended = run(
        "look",
        "plugin: {secret: '${MLOC_TEST_SECRET}'}\n  resources: {hardware: {cpu: 500m, memory: 700Mi, gpu: {count: 0}}}",
    )
    assert ended.is_success
    folder = home.run_folder(ended.run_id, "look")
    seen = json.loads((folder / "responses.json").read_text("utf-8"))["result"]
    assert seen == {
        "memory": 700 << 20, "quota": 50_000, "cores": [0], "uid": 1000, "shm": 32 << 20, "secret": "***",
        "others": ["MLOC_TEST_SECRET"],
    }  # fmt: skip
    log = (folder / "logs" / "stdout.log").read_text("utf-8")
    assert log == "the secret is ***\nand the last line\n"
    stored = [s3.get_object(Bucket="artifacts", Key=one["Key"])["Body"].read()
              for one in s3.list_objects_v2(Bucket="artifacts")["Contents"]]  # fmt: skip
    assert stored and not any(b"hunter2" in data for data in stored)
    assert not any(b"hunter2" in path.read_bytes() for path in home.root.rglob("*") if path.is_file())


def test_out_of_memory_is_named(
    run: Run, fail: None, declare: Callable, instance: DagsterInstance, engines: tuple[Engine, Engine]
) -> None:
    declare(keep_failed_seconds=0)
    ended = run("fail", FAIL % ("greedy", 0) + "\n  resources: {hardware: {memory: 400Mi, gpu: {count: 0}}}")
    assert ended.tags[CAUSE] == "out_of_memory"
    assert "was killed by the kernel: it needs more than resources.hardware.memory 400.0 MiB" in only_message(
        instance, ended
    )
    assert not [one for engine in engines for one in engine.client().containers.list(all=True)]


def test_an_error_of_the_stage_is_told_as_if_it_had_run_here(
    run: Run, fail: None, declare: Callable, instance: DagsterInstance, engines: tuple[Engine, Engine]
) -> None:
    ended = run("fail", FAIL % ("user", 2))
    assert (ended.tags[CAUSE], ended.tags[ATTEMPTS]) == ("user", "1")
    assert only_message(instance, ended) == "fail: there is no column x\ncolumns: a, b"
    [kept] = [one for engine in engines for one in engine.client().containers.list(all=True)]
    assert kept.labels["mloc.run"] == ended.run_id and kept.labels["mloc.step"] == "one-stage/fail"
    kept.remove()


def test_an_image_that_is_not_there_is_named(
    run: Run, fail: None, declare: Callable, instance: DagsterInstance
) -> None:
    declare(image="mloc-none:7", pull="never")
    ended = run("fail", FAIL % ("user", 2))
    message = only_message(instance, ended)
    assert ended.tags[ATTEMPTS] == "1" and "has no image mloc-none:7, and pull is never" in message
    declare(image="127.0.0.1:9/mloc-none:7")
    ended = run("fail", FAIL % ("user", 0), name="other")
    message = only_message(instance, ended)
    assert "the image 127.0.0.1:9/mloc-none:7 cannot be pulled: " in message and "refused" in message


def test_an_engine_that_is_not_there_is_named(
    run: Run, fail: None, declare: Callable, instance: DagsterInstance
) -> None:
    declare(host="unix:///nowhere/docker.sock")
    ended = run("fail", FAIL % ("user", 0))
    assert ended.tags[CAUSE] == "worker_lost"
    assert "the Docker Engine unix:///nowhere/docker.sock does not answer" in only_message(instance, ended)


def test_longer_than_its_limit(run: Run, fail: None, declare: Callable, instance: DagsterInstance) -> None:
    declare(keep_failed_seconds=0)
    ended = run("fail", FAIL % ("slow", 2) + "\n  timeoutSeconds: 2")
    assert (ended.tags[CAUSE], ended.tags[ATTEMPTS]) == ("timed_out", "1")
    assert "ran longer than timeoutSeconds 2 and was ended" in only_message(instance, ended)


def test_silent_work_is_lost(
    run: Run, fail: None, declare: Callable, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(keep_failed_seconds=0)
    monkeypatch.setenv("MLOC_LOST_AFTER_SECONDS", "8")
    ended = run("fail", FAIL % ("stopped", 0))
    assert ended.tags[CAUSE] == "worker_lost" and "gave no sign of life for 8 s" in only_message(instance, ended)


def test_an_environment_that_is_not_set_is_named(
    run: Run, fail: None, declare: Callable, instance: DagsterInstance
) -> None:
    declare(env=["MLOC_TEST_UNSET"])
    ended = run("fail", FAIL % ("user", 0))
    assert "gives one the environment variables MLOC_TEST_UNSET, which are not set here" in only_message(
        instance, ended
    )


def test_without_the_package_the_way_out_is_told(
    run: Run, fail: None, declare: Callable, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "docker", None)
    ended = run("fail", FAIL % ("user", 0))
    assert "pip install 'mloc-dagster[docker]'" in only_message(instance, ended)
    assert os.environ["DAGSTER_HOME"]
