"""Inference in shards: the same result as unsharded, whatever the rows and however often a shard fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executors.base import ExecutorError, Exhausted, Result
from executors.host import execute
from executors.serving.registry import engines_of, registry_of
from tests.executors.conftest import ENVIRONMENT, ROOT, MakeJob, result_of, run_host, write_jsonl
from tests.executors.serving.conftest import cache
from tests.executors.sharding.conftest import BROKEN, DIE, FAIL, inference_job

__all__ = ["cache"]

Notes = Callable[[], list[int]]
EXPORT = {"jsonl_export": {"path": "x.jsonl", "fields": {"p": "prompt", "o": "output", "i": "item.index"}}}


def same(sharded: Result, plain: Result) -> None:
    """Assert that two results tell the same, apart from time and shards."""
    for one in (sharded, plain):
        one.payload["usage"].pop("latency_sec")
    shards = sharded.payload.pop("shards")
    told = [sum(shard["usage"][name] for shard in shards) for name in plain.payload["usage"]]
    assert told == list(plain.payload["usage"].values())
    assert [shard["index"] for shard in shards] == list(range(len(shards)))
    assert sum(shard["rows"] for shard in shards) == len(plain.payload["items"])
    assert sharded.payload == plain.payload
    assert sharded.metadata == plain.metadata


def both(data: dict[str, Any], shards: int, folder: Path, **more: Any) -> tuple[Result, Result]:
    sharded, plain = (execute(inference_job(folder / str(count), data, count, **more)) for count in (shards, 0))
    return sharded, plain


def test_three_shards_of_a_list(notes: Notes, tmp_path: Path) -> None:
    data = {"items": [f"p{number}" for number in range(7)], "metadata": [{"k": number} for number in range(7)]}
    sharded, plain = both(data, 3, tmp_path)
    assert [(shard["rows"], shard["attempts"]) for shard in sharded.payload["shards"]] == [(2, 1), (2, 1), (3, 1)]
    assert [item["index"] for item in sharded.payload["items"]] == list(range(7))
    same(sharded, plain)
    assert sorted(notes()) == sorted([*range(7), *range(7)])


rows = st.lists(st.text("abc", max_size=4).map(lambda text: f"p{text}"), min_size=1, max_size=12)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=rows, shards=st.integers(1, 6), seed=st.none() | st.integers(0, 9), first=st.integers(0, 3),
       slices=st.sampled_from(["train", "train[{first}:]", "train[:-{first}]", "train[:60%]"]),
       source=st.sampled_from(["items", "jsonl", "dataset"]))  # fmt: skip
def test_any_rows_in_any_number_of_shards(
    notes: Notes, prompts: list[str], shards: int, seed: int | None, first: int, slices: str, source: str
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        order = {} if seed is None else {"shuffle": True, "seed": seed}
        path = write_jsonl(folder / "rows.jsonl", [{"prompt": text, "n": n} for n, text in enumerate(prompts)])
        given_data: dict[str, dict[str, Any]] = {
            "items": {"items": prompts},
            "jsonl": {"jsonl": {"path": str(path)}},
            "dataset": {"type": "dataset", "source": {"type": "local", "path": str(path)}, "column": "prompt",
                        "split": slices.format(first=first), "metadata_columns": ["n"]},
        }  # fmt: skip
        data = given_data[source] | order
        try:
            plain = execute(inference_job(folder / "plain", data))
        except ExecutorError as error:
            with pytest.raises(ExecutorError) as other:
                execute(inference_job(folder / "sharded", data, shards))
            assert str(other.value) == str(error)
            return
        sharded = execute(inference_job(folder / "sharded", data, shards))
        assert len(sharded.payload["shards"]) == min(shards, len(plain.payload["items"]))
        same(sharded, plain)
    finally:
        shutil.rmtree(folder)


def test_the_export_is_that_of_all_rows(notes: Notes, tmp_path: Path) -> None:
    sharded, plain = both({"items": list("abcde")}, 3, tmp_path, postprocess=EXPORT)
    files = [Path(one.payload["jsonl_export"].pop("path")) for one in (sharded, plain)]
    assert [one.payload["jsonl_export"].pop("record_count") for one in (sharded, plain)] == [5, 5]
    assert files[0].read_text() == files[1].read_text() and files[0].is_relative_to(tmp_path / "3")
    assert [json.loads(line)["i"] for line in files[0].read_text().splitlines()] == list(range(5))


@pytest.mark.parametrize("how", [DIE, FAIL])
def test_only_the_shard_that_failed_is_tried_again_and_only_its_unfinished_rows(
    notes: Notes, tmp_path: Path, how: str
) -> None:
    prompts = ["a", "b", "c", "d", how, "f", "g", "h", "i"]
    result = execute(inference_job(tmp_path / "out", {"items": prompts}, 3))
    assert [shard["attempts"] for shard in result.payload["shards"]] == [1, 2, 1]
    assert sorted(notes()) == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert [item["index"] for item in result.payload["items"]] == list(range(9))


def test_a_shard_that_keeps_failing_fails_the_stage_and_the_next_run_does_only_what_is_missing(
    notes: Notes, tmp_path: Path
) -> None:
    prompts = ["a", "b", BROKEN, "d", "e", "f"]
    job = inference_job(tmp_path / "out", {"items": prompts}, 3)
    with pytest.raises(Exhausted, match=r"Shard 1 of 3 failed 3 times.*row 2 is broken") as error:
        execute(job)
    assert "run the task again" in error.value.hint
    assert sorted(notes()) == [0, 1, 2, 2, 2, 4, 5]
    (tmp_path / "mended").touch()
    before = len(notes())
    result = execute(inference_job(tmp_path / "out", {"items": prompts}, 6))  # goes on with the three that were begun
    assert notes()[before:] == [2, 3] and len(result.payload["items"]) == 6
    assert [shard["attempts"] for shard in result.payload["shards"]] == [1, 4, 1]


def test_shards_of_other_rows_do_not_count(notes: Notes, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="broken"):
        execute(inference_job(tmp_path / "out", {"items": ["a", "b", BROKEN]}, 3))
    result = execute(inference_job(tmp_path / "out", {"items": ["A", "B", "C"]}, 3))
    whole = execute(inference_job(tmp_path / "whole", {"items": ["A", "B", "C"]}, 3))
    assert result.payload["items"] == whole.payload["items"]


def test_rows_that_cannot_be_answered_are_set_apart(notes: Notes, tmp_path: Path) -> None:
    prompts = ["a", "x" * 64, "c", "d", "y" * 70]
    sharded, plain = both({"items": prompts}, 3, tmp_path, postprocess=EXPORT)
    for result, folder in ((sharded, "3"), (plain, "0")):
        told = result.payload.pop("error_rows")
        assert (told["count"], told["rows"]) == (2, [1, 4])
        path = Path(told["path"])
        assert path == tmp_path / folder / "artifacts" / "error_rows.jsonl"
        kept = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["prompt"] for row in kept] == [prompts[1], prompts[4]]
        assert result.payload.pop("jsonl_export")["record_count"] == 3
    assert sharded.payload["items"][4]["error"] == "The prompts of rows 4 fill the model's context of 64 tokens."
    assert sharded.payload["items"][4]["finish_reason"] == "error"
    same(sharded, plain)


@pytest.mark.parametrize("shards", [0, 2])
def test_when_no_row_works_it_is_the_stage_that_fails(notes: Notes, tmp_path: Path, shards: int) -> None:
    with pytest.raises(ExecutorError, match="All 3 rows failed; the first one with: The prompts of rows 0 fill"):
        execute(inference_job(tmp_path / "out", {"items": ["x" * 64] * 3}, shards))


def test_finished_rows_of_an_unsharded_stage_are_kept(notes: Notes, tmp_path: Path) -> None:
    job = inference_job(tmp_path / "out", {"items": ["a", "b", FAIL, "d"]})
    with pytest.raises(RuntimeError, match="row 2 is broken"):
        execute(job)
    rows = tmp_path / "out" / ".cache" / "rows.jsonl"
    with rows.open("a") as file:
        file.write('{"row": 3, "pro')  # what a kill leaves
    kept = execute(job)
    assert notes() == [0, 1, 2, 2, 3]
    whole = execute(inference_job(tmp_path / "whole", {"items": ["a", "b", "c", "d"]}))
    assert kept.payload["items"][3] == whole.payload["items"][3] and len(kept.payload["items"]) == 4
    assert kept.payload["usage"]["completion_tokens"] == whole.payload["usage"]["completion_tokens"]
    assert not rows.exists()


@pytest.mark.parametrize(("shards", "limit"), [(8, 1.0), (64, 3.0)])
def test_shards_cost_little_beyond_the_longest_of_them(shards: int, limit: float) -> None:
    command = [sys.executable, "-m", "benchmarks.sharding", str(shards)]
    told = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=120)
    assert float(told.stdout.split()[-2]) < limit, told.stdout


@pytest.mark.slow
def test_greedy_texts_of_the_tiny_llama_are_those_of_the_unsharded_stage(job: MakeJob) -> None:
    spec = {"data": {"items": [f"good day {number}" for number in range(7)]},
            "inference": {"max_tokens": 12, "temperature": 0}}  # fmt: skip
    parallel = {"parallel": {"enabled": True, "max_shards": 3}, "resources": {"replicas": 3}}
    results = []
    for name, more in (("sharded", parallel), ("plain", {})):
        one = job("inference", spec | more, name=name)
        code, output = run_host(one)
        assert code == 0, output
        results.append(Result.model_validate(result_of(one)))
    assert len(results[0].payload["shards"]) == 3
    same(*results)


@pytest.mark.slow
def test_all_shards_share_one_warm_engine(job: MakeJob, cache: Path) -> None:
    spec = {"data": {"items": [f"good day {number}" for number in range(6)]},
            "inference": {"max_tokens": 6, "temperature": 1.0, "seed": 4}}  # fmt: skip
    parallel = {"parallel": {"enabled": True, "max_shards": 3}, "resources": {"replicas": 3}}
    sharded = job("inference", spec | parallel, cache=cache)
    code, output = run_host(sharded, MLOC_ENGINE_IDLE="60")
    assert code == 0, output
    assert len(engines_of(registry_of(cache))) == 1
    told = result_of(sharded)["payload"]
    assert [(shard["rows"], shard["attempts"]) for shard in told["shards"]] == [(2, 1)] * 3
    plain = job("inference", spec, name="plain", cache=cache)
    assert run_host(plain, MLOC_ENGINE_IDLE="60")[0] == 0
    assert result_of(plain)["metadata"]["engine_start"] == "warm"
    assert told["items"] == result_of(plain)["payload"]["items"]
