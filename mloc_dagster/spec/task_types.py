"""The task types that can run, what each reads of a stage, and those that are still to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from pydantic import BaseModel

GROUP = "mloc.executors"
"""Entry-point group in which packages offer executors."""

COMMON = frozenset(
    "task_type depends_on resources retry enforce_cpu slo_seconds deadline_seconds slo latency runtime timeout_seconds "
    "mirror output.destination output.artifacts".split()
)
_PROMPT_DATA = frozenset(
    "data.type data.url data.name data.split data.revision data.column data.shuffle data.seed data.buffer_size "
    "data.metadata_columns data.metadata_include_all data.items data.metadata data.template data.task data.prompts data.jsonl "
    "data.input_sources data.processing data.max_samples query task".split()
)
_ROW_DATA = frozenset(
    "data.jsonl data.dataset_name data.config_name data.split data.revision data.max_samples data.prompt_column "
    "data.response_column data.text_field data.separator data.prompts data.prompt_template data.source data.shuffle "
    "data.seed data.url data.name data.type".split()
)
_TRAINING = frozenset(
    f"training.{key}"
    for key in "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps learning_rate warmup_steps "
    "weight_decay logging_steps save_steps save_strategy save_total_limit save_model max_seq_length packing fp16 bf16 "
    "gradient_checkpointing seed max_grad_norm resume_from_path log_with deepspeed fsdp fsdp_config "
    "ddp_find_unused_parameters".split()
)
_INFERENCE = frozenset(
    "model.source model.config model.adapters model.vllm model.transformers inference postprocess checkpoint".split()
)
_SFT = (
    frozenset("model.source model.config model.transformers model.adapter checkpoint".split()) | _TRAINING | _ROW_DATA
)


@dataclass(frozen=True)
class TaskType:
    """A task type: dotted prefixes of the keys that it reads, and whether it needs a model and data."""

    name: str
    summary: str
    uses: frozenset[str]
    extra: str = ""
    """The optional dependency set that it needs."""
    needs_model: bool = False
    needs_data: bool = False
    trains: bool = False
    config_class: str = ""
    """TRL config class whose fields pass through `training`."""
    section: type[BaseModel] | None = None
    """Model of `spec.plugin` for a type that a package adds."""

    def reads(self, dotted: str) -> bool:
        """Whether the type uses the key, one of its parents, or something below it."""
        return any(_covers(used, dotted) for used in self.uses | COMMON)


def _covers(used: str, dotted: str) -> bool:
    prefix = used.removesuffix(".*")
    return prefix == "*" or dotted == prefix or dotted.startswith(f"{prefix}.")


BUILT_IN: Mapping[str, TaskType] = {
    task_type.name: task_type
    for task_type in (
        TaskType(
            "echo", "returns what it is given; checks a deployment without a model", frozenset({"echo"}) | _PROMPT_DATA
        ),
        TaskType(
            "inference", "generates text for a list of prompts", _PROMPT_DATA | _INFERENCE, "inference", True, True
        ),
        TaskType(
            "sft",
            "supervised fine-tuning of all weights, or of an adapter",
            _SFT | {"lora"},
            "training",
            True,
            True,
            True,
            "SFTConfig",
        ),
        TaskType(
            "lora_sft",
            "supervised fine-tuning of a LoRA adapter",
            _SFT | {"lora"},
            "training",
            True,
            True,
            True,
            "SFTConfig",
        ),
        TaskType("evaluation", "scores the items of earlier stages", frozenset({"evaluation"})),
    )
}

PLANNED: frozenset[str] = frozenset(
    "reward dpo ppo grpo rag rag_indexing rag_inference retrieval agent agent_inference serve".split()
)
"""Named by the task language, not there yet."""


@cache
def known() -> Mapping[str, TaskType]:
    """All task types that can run here, with those of installed packages."""
    found = dict(BUILT_IN)
    for point in entry_points(group=GROUP):
        if point.name not in found and point.name not in PLANNED:
            executor = point.load()
            uses = frozenset(getattr(executor, "uses", frozenset()))
            summary = (executor.__doc__ or "").strip().split("\n")[0]
            section = getattr(executor, "section", None)
            found[point.name] = TaskType(point.name, summary, uses | {"plugin"}, section=section)
    return found
