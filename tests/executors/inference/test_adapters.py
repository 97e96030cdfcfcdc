"""LoRA adapters and checkpoints at generation time."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError, Result
from executors.host import execute
from tests.executors.conftest import MakeJob, make_random_llama

GREEDY = {"max_tokens": 16, "temperature": 0}


def make_adapter(model: Path, folder: Path, *, seed: int = 0) -> Path:
    """A LoRA whose matrices are random, so that it changes the texts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny, tmp_path / "final_lora")


def generate(job: MakeJob, adapters: list[dict[str, Any]], name: str = "out", **more: Any) -> tuple[list[str], Result]:
    spec = {"data": {"items": ["hello", "good day"]}, "inference": GREEDY, "model": {"adapters": adapters}} | more
    result = execute(job("inference", spec, name=name, results=more.pop("results", None)))
    return [item["output"] for item in result.payload["items"]], result


def test_merged_and_runtime_give_the_same_text(job: MakeJob, adapter: Path) -> None:
    plain, base = generate(job, [])
    runtime, at_runtime = generate(job, [{"path": str(adapter)}])
    merged, was_merged = generate(job, [{"path": str(adapter), "apply": "merge"}])
    assert runtime == merged != plain
    digests = [result.metadata["weights_digest"] for result in (base, at_runtime, was_merged)]
    assert digests[1] == digests[2] != digests[0]


def test_scale_zero_is_the_base_model(job: MakeJob, adapter: Path) -> None:
    assert generate(job, [{"path": str(adapter), "scale": 0.0}])[0] == generate(job, [])[0]


def test_several_adapters_add_up(job: MakeJob, tiny: Path, adapter: Path, tmp_path: Path) -> None:
    other = make_adapter(tiny, tmp_path / "other", seed=1)
    both = [{"path": str(adapter)}, {"path": str(other)}]
    merged = [one | {"apply": "merge"} for one in both]
    assert generate(job, both)[0] == generate(job, merged)[0] != generate(job, both[:1])[0]


def test_archive_and_task_id(job: MakeJob, adapter: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "final_lora.tar.gz", "w:gz") as archive:
        archive.add(adapter, arcname="final_lora")
    expected = generate(job, [{"path": str(adapter)}])[0]
    assert generate(job, [{"path": str(tmp_path / "final_lora.tar.gz")}])[0] == expected
    stage = tmp_path / "results" / "task-0" / "tune"
    stage.mkdir(parents=True)
    adapter.rename(stage / "final_lora")
    spec = {
        "data": {"items": ["hello", "good day"]},
        "inference": GREEDY,
        "model": {"adapters": [{"task_id": "task-0"}]},
    }
    result = execute(job("inference", spec, results=tmp_path / "results"))
    assert [item["output"] for item in result.payload["items"]] == expected


def test_checkpoint_adapter_and_model(job: MakeJob, adapter: Path, tmp_path: Path) -> None:
    by_adapter = generate(job, [], checkpoint={"load": {"path": str(adapter)}})[0]
    assert by_adapter == generate(job, [{"path": str(adapter), "apply": "merge"}])[0]
    other = make_random_llama(tmp_path / "final_model")
    by_model, result = generate(job, [], checkpoint={"load": {"path": str(tmp_path), "subdir": "final_model"}})
    assert by_model == generate(job, [])[0]
    assert result.metadata["weights_digest"] == generate(job, [])[1].metadata["weights_digest"]
    assert other.exists()


def test_checkpoint_that_is_not_there_fails(job: MakeJob) -> None:
    with pytest.raises(ExecutorError, match=r"checkpoint\.load cannot be used: path '/nope' is not there"):
        generate(job, [], checkpoint={"load": {"path": "/nope"}})


def test_adapter_of_another_model_says_so(job: MakeJob, adapter: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = tmp_path / "small"
    config = LlamaConfig(
        vocab_size=101, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(small)
    AutoTokenizer.from_pretrained(make_random_llama(tmp_path / "tokens")).save_pretrained(small)
    for apply in ("runtime", "merge"):
        spec = {
            "data": {"items": ["a"]},
            "inference": GREEDY,
            "model": {"adapters": [{"path": str(adapter), "apply": apply}]},
        }
        with pytest.raises(ExecutorError, match="does not fit the model"):
            execute(job("inference", spec, model=small))
