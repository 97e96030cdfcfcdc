"""Every dialect, alias and short form loads into the same typed model."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import pytest

from mloc_dagster.spec import StageSpec, load_file, load_text
from tests.spec.corpus import GOOD, HERE, name_of


def value_at(spec: StageSpec, dotted: str) -> object:
    """Walk attributes, list indexes and map keys."""

    def step(value: object, key: str) -> object:
        if isinstance(value, list):
            return value[int(key)]
        return value[key] if isinstance(value, dict) else getattr(value, key)

    return reduce(step, dotted.split("."), spec)


@pytest.mark.parametrize("file", GOOD, ids=name_of)
def test_good_files_load(file: Path) -> None:
    task = load_file(file)
    assert task.stages
    for stage in task.stages:
        assert not any(key in stage.raw for key in ("hyperparameters", "dataset", "taskType", "configName"))


GOOD_VALUES = {
    "agent_short": {
        "agent.type": "react",
        "agent.tools": ["python_repl", "web_search"],
        "agent.max_iterations": 3,
        "agent.timeout": 20,
        "inference.temperature": 0.2,
    },
    "agent_profile": {"agent.config_name": "examples/search_agent", "task": "find papers"},
    "serve": {"serve.port": 8000, "serve.host": "127.0.0.1", "inference.max_tokens": 5},
    "rag_short": {
        "rag.embedding.model": "sentence-transformers/all-MiniLM-L6-v2",
        "rag.vector_store.type": "chromadb",
        "rag.vector_store.path": "/index",
        "rag.search.top_k": 5,
        "rag.documents.source.bucket": "docs",
        "rag.chunk_size": 300,
        "rag.chunk_overlap": 30,
    },
    "retrieval": {
        "rag.vector_store.type": "faiss",
        "rag.vector_store.path": "/i",
        "rag.vector_store.metadata_path": "/m",
        "rag.embedding.model": "org/embed",
        "rag.search.top_k": 4,
        "rag.search.similarity_threshold": 0.5,
    },
    "dpo": {"training.beta": 0.1, "training.loss_type": ["sigmoid"], "lora.r": 8, "data.preferences.0.rejected": "c"},
    "inference_all": {
        "resources.hardware.cpu": 0.5,
        "resources.hardware.memory": 3 << 29,
        "resources.hardware.gpu.type": "a100-80gb",
        "resources.hardware.gpu.count": 2,
        "resources.hardware.gpu.memory": 40 << 30,
        "retry.max_retries": 2,
        "parallel.max_shards": 4,
        "model.source.revision": "0071",
        "model.vllm.max_num_seqs": 64,
        "model.transformers.load_in_4bit": True,
        "model.adapters.0.headers.X-Key": "${KEY}",
        "model.adapters.1.task_id": "earlier-task",
        "model.adapters.1.apply": "merge",
        "data.revision": "1.10",
        "data.metadata_columns": {"output": "reference"},
        "inference.system_prompt": "Answer in one sentence.",
        "inference.max_tokens": 64,
        "inference.stop": ["\n\n", "END"],
        "postprocess.jsonl_export.fields.kind.source": "literal",
        "postprocess.jsonl_export.fields.kind.value": "distilled",
        "postprocess.jsonl_export.fields.prompt.source": "prompt",
        "postprocess.jsonl_export.fields.id": "item.index",
        "postprocess.jsonl_export.fields.version": 3,
        "checkpoint.load.timeout_sec": 30,
        "output.destination.retry_backoff_sec": 0.1,
    },
    "older_sft": {
        "data.dataset_name": "databricks/dolly-15k",
        "data.prompt_template": "{instruction}: {response}",
        "training.max_seq_length": 2048,
        "training.output_dir": "/artifacts/sft-mistral-7b-dolly",
        "training.learning_rate": 2e-4,
        "training.fp16": True,
        "model.adapter.target_modules": ["q_proj", "v_proj"],
        "resources.hardware.gpu.type": "a100-80gb",
        "output.destination.bucket": "my-ml-models",
    },
    "older_inference": {
        "model.source.identifier": "org/model",
        "data.type": "dataset",
        "data.url": "org/set",
        "inference.max_tokens": 64,
        "inference.stop": "END",
        "inference.seed": 3,
    },
    "short_form": {
        "model.source.identifier": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "data.type": "list",
        "data.items": ["one", "two"],
        "resources.hardware.gpu.count": 1,
    },
    "ppo": {
        "reward_model.identifier": "cardiffnlp/twitter-roberta-base-sentiment-latest",
        "reward_model.type": "sentiment",
        "training.learning_rate": 1.41e-5,
        "training.per_device_train_batch_size": 4,
        "training.max_steps": 50,
        "training.ppo_epochs": 4,
        "generation.max_new_tokens": 256,
        "model.config.fp16": True,
        "resources.hardware.memory": 64 << 30,
        "data.prompts.0": "Write a helpful response: How can I improve my productivity?",
    },
    "ppo_short": {
        "reward_model.identifier": "OpenAssistant/reward-model-deberta-v3-large-v2",
        "training.ppo_epochs": 4,
        "training.target_kl": 0.1,
        "generation.top_p": 0.9,
        "training.gamma": 0.99,
        "data.dataset_name": "org/prompts",
    },
    "training_all": {
        "training.max_steps": 50,
        "training.per_device_train_batch_size": 4,
        "training.save_steps": 10,
        "training.packing": False,
        "training.fp16": False,
        "training.bf16": True,
        "training.max_grad_norm": 0.5,
        "training.lr_scheduler_type": "cosine",
        "data.text_field": "text",
        "data.config_name": "train_prefs",
    },
    "every_section": {"agent.config_name": "examples/search_agent", "rag.search.rerank_model.model": "org/rerank"},
}


@pytest.mark.parametrize("name", GOOD_VALUES)
def test_values_of(name: str) -> None:
    spec = load_file(HERE / "good" / f"{name}.yaml").stages[0].spec
    assert {dotted: value_at(spec, dotted) for dotted in GOOD_VALUES[name]} == GOOD_VALUES[name]


@pytest.mark.parametrize(
    ("stage", "dotted", "value"),
    [
        ("with_metadata", "metadata", [{"k": 1}, {"k": 2}]),
        ("nested", "items", ["a"]),
        ("prompts_as_items", "items", ["a", {"prompt": "b", "id": 7}]),
        ("static", "task", "say hi"),
        ("jsonl_flat", "jsonl.prompt_field", "q"),
        ("jsonl_beside", "jsonl.prompt_field", "q"),
        ("jsonl_all", "jsonl.url", "https://example.org/rows.jsonl"),
        ("jsonl_all", "jsonl.task_id", "earlier"),
        ("dataset_nested", "split", "validation[-50:]"),
        ("dataset_older", "url", "org/set"),
        ("dataset_word", "url", "org/set"),
    ],
)
def test_sources_of_prompts(stage: str, dotted: str, value: object) -> None:
    spec = load_file(HERE / "good" / "data_list.yaml").stage(stage).spec
    assert value_at(spec, f"data.{dotted}") == value


def test_relative_paths_start_from_the_file() -> None:
    folder = HERE / "good"
    task = load_file(folder / "data_list.yaml")
    assert task.stage("jsonl_text").raw["data"]["jsonl"]["path"] == str(folder / "rows.jsonl")
    assert task.stage("static").raw["model"]["source"]["identifier"] == str(folder / "models" / "tiny")
    sources = load_file(folder / "training_sources.yaml")
    assert sources.stage("local").raw["data"]["source"]["path"] == str(folder / "data" / "rows.parquet")
    assert sources.stage("s3").raw["data"]["source"]["path"] == "rows.jsonl"


def test_template_columns_and_stage_outputs_name_results_with_or_without_braces() -> None:
    brief = load_file(HERE / "good" / "graph_template.yaml").stage("brief").spec.data.template
    assert brief and [column.expr for column in brief.columns[:2]] == [
        "left.result.items[0].output",
        "right.result.items.0.output",
    ]
    sources = load_file(HERE / "good" / "workflow.yaml").stage("revise").spec.data.input_sources
    assert sources and sources.initial_answers and sources.initial_answers.stage_output == "draft.result.items"


def test_values_that_are_references_wait_for_their_type() -> None:
    task = load_file(HERE / "good" / "deferred.yaml")
    assert set(task.stage("b").deferred) == {
        "resources.hardware.cpu",
        "resources.hardware.memory",
        "lora",
        "training.packing",
        "training.save_strategy",
        "training.per_device_train_batch_size",
        "data.preferences",
    }
    assert set(task.stage("c").deferred) == {"evaluation.candidates", "evaluation.metrics"}
    assert task.stage("b").raw["lora"] == "${a.result.echo.lora}"
    assert task.stage("b").spec.lora is None


@pytest.mark.parametrize(
    ("slo", "seconds"),
    [
        ("sloSeconds: 1\n  slo: {seconds: 2}", 1),
        ("sloSeconds: 0\n  slo: {seconds: 2}", 2),
        ("slo: {sloSeconds: '2'}\n  latency: {sloSeconds: 3}", 2),
        ("latency: {sloSeconds: 3}\n  runtime: {sloSeconds: 4}", 3),
        ("runtime: {sloSeconds: 4}", 4),
        ("runtime: {sloSeconds: -4}\n  deadlineSeconds: 6", 5),
        ("deadlineSeconds: 6", 5),
    ],
)
def test_the_first_positive_service_level_counts(slo: str, seconds: float) -> None:
    head = "apiVersion: mloc/v1\nmetadata: {name: t, annotations: {sloSeconds: 5}}\nspec:\n  taskType: echo\n  "
    assert load_text(head + slo).stages[0].spec.slo_limit() == seconds


def test_a_submitted_copy_keeps_its_folder() -> None:
    from mloc_dagster.spec.load import with_base

    text = "taskType: inference\nmodel: org/m\ndata: {jsonl: rows.jsonl}\n"
    copy = with_base(text, Path("/srv/files"))
    assert with_base(copy, Path("/elsewhere")) == copy
    assert load_text(copy).stages[0].raw["data"]["jsonl"]["path"] == "/srv/files/rows.jsonl"
