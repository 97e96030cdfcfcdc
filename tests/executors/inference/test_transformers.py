"""Generation with Transformers on a real tiny model."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.host import execute
from tests.executors.conftest import MakeJob, payload, start_host

PROMPTS = ["hello", "good day, world", "x", "1 + 1 =", "The quick brown fox jumps over the lazy dog again and again"]
GREEDY = {"max_tokens": 24, "temperature": 0}
SAMPLED = {"max_tokens": 24, "temperature": 1.0, "top_p": 0.9, "top_k": 20, "seed": 11}


def outputs(job: MakeJob, inference: dict[str, Any], prompts: list[Any] = PROMPTS, **more: Any) -> list[str]:
    spec = {"data": {"items": prompts}, "inference": inference} | more
    return [item["output"] for item in payload(job("inference", spec))["items"]]


def reference(model: Path, prompt: str, count: int) -> str:
    """Greedy text by the plainest loop there is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, llama = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    length = ids.shape[1]
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.cat([ids, llama(ids).logits[:, -1:].argmax(-1)], dim=1)
    text = tokenizer.decode(ids[0, length:])
    return text.split(tokenizer.eos_token)[0]


def test_batch_with_left_padding_equals_the_plain_loop(job: MakeJob, tiny: Path) -> None:
    assert outputs(job, GREEDY) == [reference(tiny, prompt, 24) for prompt in PROMPTS]


def test_shape_of_the_result(job: MakeJob) -> None:
    spec = {"data": {"items": ["ab"], "metadata": [{"k": 1}]}, "inference": GREEDY}
    result = execute(job("inference", spec))
    [item] = result.payload["items"]
    assert set(item) == {"index", "prompt", "output", "finish_reason", "metadata"}
    assert item["metadata"] == {"k": 1} and item["finish_reason"] == "length"
    usage = result.payload["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (2, 24, 26)
    assert usage["num_requests"] == 1 and usage["latency_sec"] > 0
    assert result.metadata["engine"] == "transformers"
    assert result.metadata["weights_digest"].startswith("sha256:")


def test_stop_is_cut_from_the_output(job: MakeJob) -> None:
    full = outputs(job, GREEDY)[0]
    mark = full[6:9]
    spec = {"data": {"items": PROMPTS[:1]}, "inference": GREEDY | {"stop": [mark, "never"]}}
    [item] = payload(job("inference", spec))["items"]
    assert item["output"] == full[: full.index(mark)]
    assert item["finish_reason"] == "stop"


def test_seeded_samples_do_not_depend_on_the_batch(job: MakeJob) -> None:
    one_batch = outputs(job, SAMPLED, model={"transformers": {"batch_size": 8}})
    assert one_batch == outputs(job, SAMPLED, model={"transformers": {"batch_size": 1}})
    assert one_batch != outputs(job, SAMPLED | {"seed": 12})
    assert one_batch != outputs(job, GREEDY)


def test_do_sample_false_is_greedy(job: MakeJob) -> None:
    assert outputs(job, SAMPLED | {"do_sample": False}) == outputs(job, GREEDY)


def test_n_gives_several_outputs(job: MakeJob) -> None:
    spec = {"data": {"items": PROMPTS[:2]}, "inference": SAMPLED | {"n": 3}}
    items = payload(job("inference", spec))["items"]
    assert [len(item["outputs"]) for item in items] == [3, 3]
    assert all(item["output"] == item["outputs"][0] and len(set(item["outputs"])) > 1 for item in items)
    with pytest.raises(ExecutorError, match="n is 3, but greedy"):
        execute(job("inference", {"data": {"items": ["a"]}, "inference": GREEDY | {"n": 3}}))


def test_penalties_change_what_is_repeated(job: MakeJob) -> None:
    plain = outputs(job, GREEDY)
    frequency = outputs(job, GREEDY | {"frequency_penalty": 2.0})
    repetition = outputs(job, GREEDY | {"repetition_penalty": 10.0})
    assert max(len(set(text)) for text in plain) < min(len(set(text)) for text in frequency)
    assert all(not set(text) & set(prompt) for text, prompt in zip(repetition, PROMPTS, strict=True))


def test_penalties_do_not_see_padding(job: MakeJob) -> None:
    penal = GREEDY | {"repetition_penalty": 1.7, "presence_penalty": 0.5}
    assert outputs(job, penal) == [outputs(job, penal, [prompt])[0] for prompt in PROMPTS]


def test_chat_template_and_system_prompt(job: MakeJob, tiny: Path, tiny_chat: Path) -> None:
    spec = {
        "data": {"items": ["hi", [{"role": "user", "content": "yo"}]]},
        "inference": GREEDY | {"system_prompt": "be"},
    }
    chat = payload(job("inference", spec, model=tiny_chat))
    assert [item["output"] for item in chat["items"]] == [
        reference(tiny, "s:be\nu:hi\na:", 24), reference(tiny, "s:be\nu:yo\na:", 24),
    ]  # fmt: skip
    error = "Row 1 is a conversation, but the model has no chat template."
    assert [item.get("error") for item in payload(job("inference", spec))["items"]] == [None, error]


def test_prompt_longer_than_the_context_is_set_apart(job: MakeJob) -> None:
    alone = outputs(job, GREEDY, ["a"])
    result = payload(job("inference", {"data": {"items": ["a", "b" * 256]}, "inference": GREEDY}))
    good, bad = result["items"]
    assert [good["output"]] == alone and (bad["output"], bad["finish_reason"]) == ("", "error")
    assert bad["error"] == "The prompts of rows 1 fill the model's context of 256 tokens."
    assert result["error_rows"]["rows"] == [1]
    with pytest.raises(ExecutorError, match=r"The row failed.*rows 0 fill the model's context of 256 tokens"):
        execute(job("inference", {"data": {"items": ["b" * 256]}, "inference": GREEDY}))


def test_answer_ends_at_the_context(job: MakeJob) -> None:
    spec = {"data": {"items": ["a" * 250, "b"]}, "inference": {"max_tokens": 20, "temperature": 0}}
    items = payload(job("inference", spec))["items"]
    assert [len(item["output"]) for item in items] == [6, 20]


def test_vllm_section_without_vllm_warns(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    import executors.inference

    monkeypatch.setattr(executors.inference, "find_spec", lambda name: None)
    result = execute(job("inference", {"data": {"items": ["a"]}, "inference": GREEDY, "model": {"vllm": {}}}))
    assert result.metadata["engine"] == "transformers"
    assert "vLLM is not installed" in result.metadata["warnings"][0]


def test_enforce_cpu_selects_transformers(job: MakeJob) -> None:
    spec = {"data": {"items": ["a"]}, "inference": GREEDY, "model": {"vllm": {}}, "enforce_cpu": True}
    assert execute(job("inference", spec)).metadata["engine"] == "transformers"


def test_export(job: MakeJob) -> None:
    spec = {
        "data": {"items": ["a", "b"], "metadata": [{"ref": "A"}, {"ref": "B"}]}, "inference": GREEDY,
        "postprocess": {"jsonl_export": {"path": "/shared/x.jsonl", "fields": {"p": "prompt", "r": "metadata.ref"}}},
    }  # fmt: skip
    export = payload(job("inference", spec))["jsonl_export"]
    assert export["record_count"] == 2 and export["fields"] == ["p", "r"]
    assert [json.loads(line) for line in Path(export["path"]).read_text().splitlines()] == [
        {"p": "a", "r": "A"}, {"p": "b", "r": "B"},
    ]  # fmt: skip


def test_sigterm_ends_between_batches(job: MakeJob) -> None:
    spec = {"data": {"items": ["a"] * 20_000}, "inference": GREEDY, "model": {"transformers": {"batch_size": 1}}}
    one = job("inference", spec)
    process = start_host(one)
    progress = one.out / "logs" / "progress.jsonl"
    from tests.executors.test_host import wait_until

    wait_until(lambda: progress.exists() and len(progress.read_text().splitlines()) > 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert not (one.out / "result.json").exists()
