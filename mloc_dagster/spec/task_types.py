"""The task types that can run, what each reads of a stage, and those that are still to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from pydantic import BaseModel

from mloc_dagster.spec import field_tables
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.training import Training

GROUP = "mloc.executors"
"""Entry-point group in which packages offer executors."""


def _keys(words: str, under: str = "") -> frozenset[str]:
    return frozenset(f"{under}.{word}" if under else word for word in words.split())


COMMON = _keys(
    "task_type depends_on resources retry enforce_cpu slo_seconds deadline_seconds slo latency runtime timeout_seconds "
    "mirror output.destination output.artifacts"
)
"""What every task type reads."""

_PROMPT_DATA = _keys("query task") | _keys(
    "type url name split revision column shuffle seed buffer_size metadata_columns metadata_include_all items metadata "
    "template task prompts jsonl input_sources processing max_samples dataset_name config_name",
    under="data",
)
_ROW_DATA = _keys(
    "jsonl dataset_name config_name split revision max_samples prompt_column response_column chosen_column text_field "
    "separator prompts preferences prompt_template source shuffle seed url name type",
    under="data",
)
_TRAINING = _keys(
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps learning_rate warmup_steps "
    "weight_decay logging_steps save_steps save_strategy save_total_limit save_model max_seq_length packing fp16 bf16 "
    "gradient_checkpointing seed max_grad_norm resume_from_path log_with tracker_project_name deepspeed fsdp "
    "fsdp_config ddp_find_unused_parameters allow_multi_gpu visible_devices primary_gpu nproc_per_node auto_deepspeed "
    "auto_deepspeed_stage",
    under="training",
)
_INFERENCE = _keys("source config adapters vllm transformers", under="model") | _keys(
    "inference postprocess checkpoint parallel"
)
_WEIGHTS = (
    _keys("source config adapter", under="model")
    | _keys(
        "dtype load_in_8bit load_in_4bit attn_implementation use_flash_attention_2 trust_remote_code",
        under="model.transformers",
    )
    | {"checkpoint", "lora"}
)
_SFT = _WEIGHTS | _TRAINING | _ROW_DATA
_PREFERENCES = (
    (_WEIGHTS | _TRAINING | _ROW_DATA | {"data.rejected_column"})
    - {"training.packing"}
    - _keys("response_column text_field prompt_template", under="data")
)
_GRPO = (
    (_WEIGHTS | _TRAINING | _ROW_DATA | {"training.beta", "generation", "reward_model"})
    - _keys("packing max_seq_length", under="training")
    - _keys("chosen_column separator", under="data")
)
_PPO = (
    (_WEIGHTS | _TRAINING | _ROW_DATA | {"generation", "reward_model"})
    | _keys("target_kl kl_coef ppo_epochs mini_batch_size num_mini_batches early_stopping", under="training")
) - (
    _keys(
        "packing deepspeed fsdp fsdp_config ddp_find_unused_parameters auto_deepspeed auto_deepspeed_stage",
        under="training",
    )
    | _keys("chosen_column separator", under="data")
)
_EVALUATION = (
    _keys("source config transformers adapters", under="model")
    | _keys("evaluation checkpoint reward_model")
    | _ROW_DATA
    | {"data.rejected_column"}
)
_INDEX = _keys(
    "vector_store.type vector_store.path vector_store.collection vector_store.url vector_store.api_key embedding "
    "documents chunk_size chunk_overlap",
    under="rag",
)
_AGENT = (
    _PROMPT_DATA
    | _INDEX
    | _keys("source config adapters vllm transformers", under="model")
    | _keys(
        "prompts max_tokens temperature top_p top_k do_sample repetition_penalty presence_penalty frequency_penalty "
        "stop seed system_prompt",
        under="inference",
    )
    | _keys("agent postprocess checkpoint parallel rag.search rag.queries")
)
_RETRIEVAL = (
    _INDEX
    | _PROMPT_DATA
    | _keys("search queries expected_field min_hit_rate min_mrr", under="rag")
    | {"inference.prompts"}
)
_SERVE = (
    _keys("source config adapters vllm transformers", under="model")
    | _keys(
        "system_prompt max_tokens temperature top_p top_k do_sample repetition_penalty presence_penalty "
        "frequency_penalty stop seed n",
        under="inference",
    )
    | _keys("serve checkpoint rag.search rag.max_context_tokens")
    | _INDEX
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
    """TRL's config class, or our own, whose fields pass through `training`."""
    reusable: bool = True
    """Whether an earlier result can stand for the work."""
    section: type[BaseModel] | None = None
    """Model of `spec.plugin` for a type that a package adds."""

    def reads(self, dotted: str) -> bool:
        """Whether the type uses the key, one of its parents, or something below it."""
        return self._passes_through(dotted) or any(_covers(used, dotted) for used in self.uses | COMMON)

    def part(self, raw: Mapping[str, Json], under: str = "") -> dict[str, Json]:
        """Return what the type reads of a canonical stage; all of it for a type that a package adds."""
        if self.name not in BUILT_IN:
            return dict(raw)
        found: dict[str, Json] = {}
        for key, value in raw.items():
            dotted = f"{under}{key}"
            if self.reads(dotted):
                found[key] = value
            elif isinstance(value, Mapping) and (inner := self.part(value, f"{dotted}.")):
                found[key] = inner
        return found

    def _passes_through(self, dotted: str) -> bool:
        section, _, rest = dotted.partition(".")
        key = rest.partition(".")[0]
        ours = key in Training.model_fields
        return section == "training" and self.trains and not ours and key in field_tables.trl(self.config_class)


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
            _SFT,
            "training",
            True,
            True,
            True,
            "SFTConfig",
        ),
        TaskType(
            "lora_sft",
            "supervised fine-tuning of a LoRA adapter",
            _SFT,
            "training",
            True,
            True,
            True,
            "SFTConfig",
        ),
        TaskType(
            "reward",
            "trains a model that scores texts, from pairs of a better and a worse answer",
            _PREFERENCES,
            "training",
            True,
            True,
            True,
            "RewardConfig",
        ),
        TaskType(
            "dpo",
            "makes better answers likelier than worse ones (direct preference optimization)",
            _PREFERENCES | {"training.beta"},
            "training",
            True,
            True,
            True,
            "DPOConfig",
        ),
        TaskType(
            "grpo",
            "samples answers and makes those with a higher reward likelier (group relative policy optimization)",
            _GRPO,
            "training",
            True,
            True,
            True,
            "GRPOConfig",
        ),
        TaskType(
            "ppo",
            "samples answers and makes those likelier that earn more than expected (proximal policy optimization)",
            _PPO,
            "training",
            True,
            True,
            True,
            "PPOConfig",
        ),
        TaskType("rag_indexing", "makes an index of documents that later stages search", _INDEX, "rag"),
        TaskType("rag", "finds the passages of an index that answer each query", _RETRIEVAL, "rag", needs_data=True),
        TaskType("retrieval", "the same as rag", _RETRIEVAL, "rag", needs_data=True),
        TaskType(
            "rag_inference",
            "finds passages and generates an answer from them, with citations",
            _RETRIEVAL | _INFERENCE | {"rag.max_context_tokens"},
            "rag",
            True,
            True,
        ),
        TaskType("agent", "works on each prompt with a model that calls tools", _AGENT, "agent", needs_data=True),
        TaskType("agent_inference", "the same as agent", _AGENT, "agent", needs_data=True),
        TaskType(
            "serve",
            "answers requests of the OpenAI protocol until it is cancelled or its time is over",
            _SERVE,
            "inference",
            needs_model=True,
            reusable=False,
        ),
        TaskType("evaluation", "scores the items of earlier stages, or a model on rows of data", _EVALUATION),
    )
}


@cache
def known() -> Mapping[str, TaskType]:
    """All task types that can run here, with those of installed packages."""
    found = dict(BUILT_IN)
    for point in entry_points(group=GROUP):
        if point.name not in found:
            executor = point.load()
            uses = frozenset(getattr(executor, "uses", frozenset()))
            summary = (executor.__doc__ or "").strip().split("\n")[0]
            section = getattr(executor, "section", None)
            found[point.name] = TaskType(point.name, summary, uses | {"plugin"}, section=section)
    return found
