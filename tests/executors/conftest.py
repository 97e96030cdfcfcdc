"""A tiny real model, and jobs that run on it."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executors.host import execute
from executors.job import Job

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 0.5M parameters whose tokens are characters; it has no chat template."""
    return make_random_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template."""
    from transformers import AutoTokenizer

    folder = make_random_llama(tmp_path_factory.mktemp("models") / "tiny-chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
        "{% else %}{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


MakeJob = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path, tiny: Path) -> MakeJob:
    """Make a job on the tiny model: `job("inference", {...spec...}, name="run", upstream={...})`."""

    def make(task_type: str, spec: dict[str, Any], name: str = "out", model: Path | None = tiny, **fields: Any) -> Job:
        source = {"source": {"type": "local", "identifier": "tiny"}} if model else {}
        raw = {"task_type": task_type} | spec
        raw["model"] = source | spec.get("model", {})
        folder = tmp_path / name
        return Job(task_id="task-1", task_name="test", stage="s", raw=raw, out=folder, model_path=model, **fields)

    return make


def payload(job: Job) -> dict[str, Any]:
    """Run a job in this process and return its payload."""
    return execute(job).payload


def start_host(job: Job, **environment: str) -> subprocess.Popen[str]:
    """Start `python -m executors.host` on a job."""
    job.out.mkdir(parents=True, exist_ok=True)
    path = job.out / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "executors.host", str(path)], env=ENVIRONMENT | environment, text=True, cwd=job.out,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run_host(job: Job, **environment: str) -> tuple[int, str]:
    """Run a job in a process of its own; returns exit code and output."""
    process = start_host(job, **environment)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def result_of(job: Job) -> dict[str, Any]:
    """What the host wrote."""
    return json.loads((job.out / "result.json").read_text(encoding="utf-8"))


def error_of(job: Job) -> dict[str, Any]:
    """What the host wrote when the job failed."""
    return json.loads((job.out / "error.json").read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows, one JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_random_llama(folder: Path) -> Path:
    """Save the tiny model; the same seed gives the same weights."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = string.digits + string.ascii_letters + string.punctuation + " \n"
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
