"""Generate, export, train on the export, generate again: with every trainer, and provably with the new weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

WORDS = [f"{a}{b}{c}" for a in "bdgk" for b in "aeio" for c in "lmnr"]
BASE = {
    "model": {"source": {"type": "package", "identifier": "mloc-tiny-llama"}},
    "inference": {"max_tokens": 8, "temperature": 0},
    "resources": {"hardware": {"gpu": {"count": 0}}},
    "generation": {"max_new_tokens": 8, "temperature": 1.0},
}
TRAINING = {"max_steps": 4, "batch_size": 8, "learning_rate": 2e-3, "logging_steps": 1, "max_seq_length": 64}
EXPORT = "${drafts.result.jsonl_export.path}"
FULL = {"checkpoint": {"load": {"path": "${train.result.final_model_path}"}}}
MERGED = {"model": {"adapters": [{"type": "lora", "apply": "merge", "path": "${train.result.final_lora_path}"}]}}
RUNTIME = {"model": {"adapters": [{"type": "lora", "apply": "runtime", "path": "${train.result.final_lora_path}"}]}}
PAIRS = {"jsonl": {"path": EXPORT, "prompt_field": "q", "response_field": "best", "separator": " "}}
BETTER = {"jsonl": {"path": EXPORT, "prompt_field": "q", "chosen_field": "best", "rejected_field": "draft",
                    "separator": " "}}  # fmt: skip
ASKED = {"jsonl": {"path": EXPORT, "prompt_field": "q"}}
VARIED = {"temperature": 2.0}
"""Answers of one group that earn the same teach nothing."""
LENGTH = {"reward_model": {"type": "function", "identifier": "length", "scale": 0.1}}

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sft": ({"taskType": "sft", "data": PAIRS}, FULL),
    "lora": ({"taskType": "lora_sft", "data": PAIRS}, MERGED),
    "dpo": ({"taskType": "dpo", "data": BETTER}, FULL),
    "ppo": ({"taskType": "ppo", "data": ASKED, "lora": {"r": 8}, **LENGTH}, RUNTIME),
    "grpo": (
        {"taskType": "grpo", "data": ASKED, "training": {"num_generations": 4}, "generation": VARIED, **LENGTH},
        FULL,
    ),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every trainer side by side, on what one first inference exported."""
    items = [f"copy: {word} ->" for word in WORDS]
    drafts = {
        "taskType": "inference",
        "data": {"type": "list", "items": items, "metadata": [{"best": word.upper()} for word in WORDS]},
        "postprocess": {"jsonl_export": {"fields": {"q": "prompt", "draft": "output", "best": "metadata.best"}}},
    }
    asked = {"taskType": "inference", "data": {"type": "list", "items": items[:8]}}
    nodes: list[dict[str, Any]] = [{"name": "drafts", "spec": drafts}, {"name": "base", "spec": asked}]
    for name, (train, use) in SHAPES.items():
        settings = {**TRAINING, **train.get("training", {})}
        if name == "grpo":
            del settings["max_seq_length"]  # prompt and answer have their own limits there
        used = json.loads(json.dumps(use).replace("${train.", f"${{{name}."))
        nodes += [
            {"name": name, "dependsOn": ["drafts"], "spec": {**train, "training": settings}},
            {"name": f"{name}_tuned", "dependsOn": [name], "spec": asked | used},
        ]
    task = {
        "apiVersion": "mloc/v1",
        "metadata": {"name": "p", "owner": "t"},
        "spec": BASE | {"graph": {"nodes": nodes}},
    }
    return run(tmp_path_factory.mktemp("pipelines"), task)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SHAPES)
def test_the_second_inference_uses_the_tuned_weights(name: str, report: dict[str, Any]) -> None:
    trained, tuned, base = (report["stages"][stage] for stage in (name, f"{name}_tuned", "base"))
    assert trained["result"]["dataset_size"] == len(WORDS)
    assert trained["result"]["weights_changed"] is True
    assert trained["metadata"]["weights_digest"] in tuned["metadata"]["weights"]
    assert trained["metadata"]["weights_digest"] not in base["metadata"]["weights"]
    assert tuned["metadata"]["weights_digest"] != base["metadata"]["weights_digest"]
    assert difference(trained["result"], Path(report["home"])) > 1e-3


def difference(trained: dict[str, Any], home: Path) -> float:
    """Largest difference between the logits of the tuned and of the base weights on one prompt."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (base,) = {config.parent for config in home.glob(".mloc/cache/**/config.json") if "adapter" not in config.name}
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = tokenizer("copy: bal ->", return_tensors="pt")
    with torch.no_grad():
        before = plain(**ids).logits
        if "final_lora_path" in trained:
            tuned: Any = PeftModel.from_pretrained(plain, trained["final_lora_path"])
        else:
            tuned = AutoModelForCausalLM.from_pretrained(trained["final_model_path"], dtype=torch.float32)
        return float((tuned(**ids).logits - before).abs().max())


def run(home: Path, task: dict[str, Any]) -> dict[str, Any]:
    file = home / "task.yaml"
    file.write_text(yaml.safe_dump(task), "utf-8")
    environment = {**os.environ, "MLOC_HOME": str(home / ".mloc"), "OMP_NUM_THREADS": "1"}
    environment.pop("DAGSTER_HOME", None)
    command = [sys.executable, "-c", "from mloc_dagster.cli import main; main()", "run", "--json", str(file)]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {**json.loads(done.stdout), "home": str(home)}
