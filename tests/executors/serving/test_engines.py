"""Engines that stay loaded: who shares them, who replaces them, and when they end."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from typer.testing import CliRunner

from executors.base import ExecutorError, Interrupted, Result
from executors.host import execute
from executors.inference import weights_of
from executors.inference.engine import Completion, sampling_of
from executors.job import Job
from executors.serving.engines import end_idle_on, endpoint
from executors.serving.registry import EngineFolder, EngineState, engines_of, registry_of
from executors.serving.remote_engine import RemoteEngine
from mloc_dagster.cli import app
from tests.executors.conftest import MakeJob, make_random_llama, start_host
from tests.executors.inference.test_adapters import make_adapter
from tests.executors.serving.conftest import context_of, is_running, kill, only_engine, pid_of, wait_until

PROMPTS = ["hello", "good day, world", "x", "1 + 1 =", "The quick brown fox jumps over the lazy dog again and again"]
SPEC: dict[str, Any] = {"data": {"items": PROMPTS}, "inference": {"max_tokens": 24, "temperature": 0}}
SAMPLED = {"max_tokens": 24, "temperature": 1.0, "top_p": 0.9, "seed": 3, "n": 2, "stop": ["e", "Z"]}


def without_time(result: Result) -> dict[str, Any]:
    payload = json.loads(json.dumps(result.payload))
    del payload["usage"]["latency_sec"]
    return payload


def test_a_second_stage_finds_the_engine_warm_and_texts_and_usage_are_those_of_the_own_process(
    job: MakeJob, cache: Path, tiny_chat: Path
) -> None:
    cold = execute(job("inference", SPEC, name="cold", cache=cache))
    pid = pid_of(only_engine(cache))
    spec = SPEC | {"inference": SAMPLED}
    warm = execute(job("inference", spec, name="warm", cache=cache))
    assert pid_of(only_engine(cache)) == pid
    assert (cold.metadata["engine_start"], warm.metadata["engine_start"]) == ("cold", "warm")
    assert warm.metadata["engine_seconds"] < 1 < cold.metadata["engine_seconds"]
    assert without_time(cold) == without_time(execute(job("inference", SPEC, name="own")))
    own = execute(job("inference", spec, name="own2"))
    assert without_time(warm) == without_time(own) and "engine_start" not in own.metadata
    assert warm.metadata["weights_digest"] == own.metadata["weights_digest"]
    assert warm.metadata["engine"] == own.metadata["engine"] == "transformers"
    chat = SPEC | {"inference": {"max_tokens": 8, "temperature": 0, "system_prompt": "be brief"}}
    other = execute(job("inference", chat, name="chat", model=tiny_chat, cache=cache))
    assert other.metadata["engine_start"] == "cold"
    assert without_time(other) == without_time(execute(job("inference", chat, name="chat-own", model=tiny_chat)))


def test_the_engine_is_nobodys_child(job: MakeJob, cache: Path) -> None:
    """So that whoever ends a run with all its processes spares it."""
    with endpoint(context_of(job("inference", SPEC, cache=cache))):
        engine = psutil.Process(pid_of(only_engine(cache)))
        assert psutil.Process().pid not in [parent.pid for parent in engine.parents()]
        environment = engine.environ()
    assert not [name for name in environment if name.startswith(("MLOC_", "PYTEST", "DAGSTER"))]


def test_two_users_at_once_share_one_engine(job: MakeJob, cache: Path) -> None:
    jobs = [job("inference", SPEC, name=f"user{number}", cache=cache) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(execute, jobs))
    assert sorted(result.metadata["engine_start"] for result in results) == ["cold", "warm"]
    assert without_time(results[0]) == without_time(results[1])
    assert len(engines_of(registry_of(cache))) == 1


def test_an_engine_that_is_killed_in_mid_batch_is_replaced_and_answered_rows_stay(job: MakeJob, cache: Path) -> None:
    spec = SPEC | {"model": {"transformers": {"batch_size": 1}}}
    expected = [item["output"] for item in execute(job("inference", spec, name="own")).payload["items"]]
    ctx = context_of(job("inference", spec, cache=cache))
    engine = RemoteEngine(ctx, *weights_of(ctx))
    first, seen, killed = pid_of(only_engine(cache)), [], []

    def finished(rows: Mapping[int, list[Completion]]) -> None:
        seen.extend(rows)
        if len(seen) == 2 and not killed:
            killed.append(first)
            kill(first)

    try:
        prompts = [engine.tokenizer(text)["input_ids"] for text in PROMPTS]
        found = engine.generate(dict(enumerate(prompts)), sampling_of(ctx.spec.inference), finished)
        assert [found[row][0].text for row in range(len(PROMPTS))] == expected
        assert engine.replaced == 1 and pid_of(only_engine(cache)) != first
        assert sorted(seen) == list(range(len(PROMPTS)))  # no row was told, so none asked, twice
    finally:
        engine.close()


def test_an_engine_that_was_killed_while_idle_is_replaced(job: MakeJob, cache: Path) -> None:
    execute(job("inference", SPEC, name="one", cache=cache))
    kill(pid := pid_of(only_engine(cache)))
    wait_until(lambda: not is_running(pid))
    assert execute(job("inference", SPEC, name="two", cache=cache)).metadata["engine_start"] == "cold"


def test_it_ends_when_idle(job: MakeJob, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_ENGINE_IDLE", "1")
    with endpoint(context_of(job("inference", SPEC, cache=cache))) as served:
        folder = only_engine(cache)
        pid = pid_of(folder)
        threading.Event().wait(2.5)  # longer than the idle time, but it is in use
        assert requests.get(served.base_url.removesuffix("/v1") + "/health", timeout=10).ok
    wait_until(lambda: not is_running(pid))
    assert not folder.path.exists()


def test_it_ends_after_its_idle_time_when_its_user_was_killed(job: MakeJob, cache: Path) -> None:
    spec = SPEC | {"inference": {"max_tokens": 200, "temperature": 0}, "data": {"items": ["a"] * 500}}
    host = start_host(job("inference", spec, cache=cache), MLOC_ENGINE_IDLE="2")
    try:
        wait_until(lambda: engines_of(registry_of(cache)) and only_engine(cache).leases())
        pid = pid_of(only_engine(cache))
        wait_until(lambda: (state := only_engine(cache).state()) and state.ready)
    finally:
        host.kill()
        host.wait()
    wait_until(lambda: not is_running(pid))
    assert engines_of(registry_of(cache)) == []


def test_it_ends_when_the_home_is_removed(job: MakeJob, cache: Path) -> None:
    execute(job("inference", SPEC, cache=cache))
    pid = pid_of(only_engine(cache))
    shutil.rmtree(cache.parent)
    wait_until(lambda: not is_running(pid))
    assert not cache.exists()


def test_without_an_idle_time_nothing_outlives_the_stage(
    job: MakeJob, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_ENGINE_IDLE", "0")
    result = execute(job("inference", SPEC, name="stage", cache=cache))
    assert "engine_start" not in result.metadata and not registry_of(cache).exists()
    ctx = context_of(job("inference", SPEC, name="agent", cache=cache))
    with endpoint(ctx) as served:
        [folder] = engines_of(ctx.out / ".cache" / "engines")
        pid = pid_of(folder)
        assert served.start == "cold" and is_running(pid)
    assert not is_running(pid) and not folder.path.exists()


def test_too_many_idle_engines_end_the_one_that_was_idle_longest(
    job: MakeJob, cache: Path, tiny_chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_ENGINE_MAX", "1")
    execute(job("inference", SPEC, name="one", cache=cache))
    first = pid_of(only_engine(cache))
    execute(job("inference", SPEC, name="two", model=tiny_chat, cache=cache))
    wait_until(lambda: not is_running(first))
    assert pid_of(only_engine(cache)) != first


def test_adapters_share_the_engine_of_their_model(job: MakeJob, cache: Path, tiny: Path, tmp_path: Path) -> None:
    paths = [str(make_adapter(tiny, tmp_path / f"lora{seed}", seed=seed)) for seed in (0, 1)]
    variants: list[list[dict[str, Any]]] = [
        [], [{"path": paths[0]}], [{"path": paths[0]}, {"path": paths[1], "scale": 0.5}], [{"path": paths[1]}], [],
    ]  # fmt: skip
    pids, texts = set(), []
    for number, adapters in enumerate(variants):
        source = {"type": "local", "identifier": "org/tiny-2.5"}  # PEFT takes no dot in an adapter's name
        spec = SPEC | {"model": {"source": source, "adapters": adapters}}
        warm = execute(job("inference", spec, name=f"warm{number}", cache=cache))
        own = execute(job("inference", spec, name=f"own{number}"))
        assert without_time(warm) == without_time(own)
        assert warm.metadata["weights"] == own.metadata["weights"]
        pids.add(pid_of(only_engine(cache)))
        texts.append(json.dumps(warm.payload["items"]))
    assert len(pids) == 1 and len(set(texts)) == 4


def test_a_model_that_cannot_be_loaded_is_a_clear_fault(job: MakeJob, cache: Path, tmp_path: Path) -> None:
    broken = make_random_llama(tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "no-such-model"}))
    with pytest.raises(ExecutorError, match="cannot be loaded"):
        execute(job("inference", SPEC, model=broken, cache=cache))
    assert engines_of(registry_of(cache)) == [] and not list(registry_of(cache).glob("*/secret"))


def test_stopping_does_not_wait_for_an_engine(job: MakeJob, cache: Path) -> None:
    stop = threading.Event()
    timer = threading.Timer(1.0, stop.set)
    timer.start()
    with pytest.raises(Interrupted):
        execute(job("inference", SPEC, cache=cache), stop=stop)
    timer.join()
    wait_until(lambda: engines_of(registry_of(cache)) == [])


def test_a_wrong_setting_is_a_clear_fault(job: MakeJob, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_ENGINE_IDLE", "soon")
    with pytest.raises(ExecutorError, match="MLOC_ENGINE_IDLE is 'soon'"):
        execute(job("inference", SPEC, cache=cache))


def test_idle_engines_leave_a_device_that_is_granted_to_others(job: MakeJob, cache: Path) -> None:
    execute(job("inference", SPEC, cache=cache))
    folder = only_engine(cache)
    pid = pid_of(folder)
    wait_until(lambda: (state := folder.state()) and state.idle_since)
    on_device = folder.spec().model_copy(update={"devices": ("0",), "on_gpu": True})
    (folder.path / "engine.json").write_text(on_device.model_dump_json())
    end_idle_on(cache, ("1",))
    assert is_running(pid)
    end_idle_on(cache, ("0", "1"))
    assert not is_running(pid)


def test_command(job: MakeJob, cache: Path) -> None:
    execute(job("inference", SPEC, cache=cache))
    folder, run = only_engine(cache), CliRunner().invoke
    pid, home = pid_of(folder), ["--home", str(cache.parent)]
    [row] = json.loads(run(app, [*home, "engines", "--json"]).stdout)
    assert (row["key"], row["model"], row["kind"], row["pid"]) == (folder.key, "tiny", "transformers", pid)
    assert row["memory"] > 100 << 20
    assert folder.key in run(app, [*home, "engines"]).stdout
    assert run(app, [*home, "engines", "stop", "f00"]).exit_code == 2
    assert run(app, [*home, "engines", "stop"]).exit_code == 2
    assert run(app, [*home, "engines", "stop", folder.key[:6]]).exit_code == 0
    assert not is_running(pid) and "no engines" in run(app, [*home, "engines"]).stdout
    assert run(app, [*home, "engines", "stop", "--all"]).exit_code == 0


def test_the_state_of_another_process_with_the_same_id_counts_for_nothing(cache: Path, job: MakeJob) -> None:
    execute(job("inference", SPEC, name="one", cache=cache))
    folder = only_engine(cache)
    state = folder.state()
    assert state is not None
    impostor = state.model_copy(update={"pid": psutil.Process().pid})
    folder.write_state(EngineState.model_validate(impostor.model_dump()))
    assert engines_of(registry_of(cache)) == []
    assert execute(job("inference", SPEC, name="two", cache=cache)).metadata["engine_start"] == "cold"
    assert psutil.Process().is_running()


def test_rag_answers_are_those_of_the_own_process(tmp_path: Path, cache: Path, tiny: Path, minilm: Path) -> None:
    (tmp_path / "notes.txt").write_text("Bread rises because yeast makes gas.\n")
    rag = {
        "embedding": {"type": "local", "model": str(minilm)},
        "documents": {"source": {"path": str(tmp_path / "notes.txt")}},
        "max_context_tokens": 60,
    }

    def run(name: str, **more: Any) -> Result:
        raw = {
            "task_type": "rag_inference", "rag": rag, "model": {"source": {"type": "local", "identifier": "tiny"}},
            "data": {"items": ["Why?"]}, "inference": {"max_tokens": 8, "temperature": 0, "system_prompt": "s"},
        }  # fmt: skip
        return execute(
            Job(task_id="t", task_name="t", stage="s", raw=raw, out=tmp_path / name, model_path=tiny,
                embedding_path=minilm, **more)
        )  # fmt: skip

    warm, own = run("warm", cache=cache), run("own")
    assert warm.metadata["engine_start"] == "cold" and "engine_start" not in own.metadata
    assert warm.payload["queries"] == own.payload["queries"]


def test_a_user_that_was_silent_for_a_while_is_still_a_user(tmp_path: Path) -> None:
    folder = EngineFolder(tmp_path, "key")
    lease = folder.add_lease()
    os.utime(lease, (0, 0))
    assert folder.leases() == 0 and lease.exists()
    os.utime(lease)
    assert folder.leases() == 1
    lease.write_text(json.dumps({"pid": os.getpid(), "born": 1.0}))
    assert folder.leases() == 0 and not lease.exists()
