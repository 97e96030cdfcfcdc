"""`spec.model`, `spec.lora`, `spec.reward_model`: the weights a stage works with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from mloc_dagster.spec.base import Fraction, Json, Positive, Section, also

ArchiveFormat = Literal["auto", "none", "zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"]


class ModelSource(Section):
    """Where weights come from."""

    type: Literal["huggingface", "local", "s3", "git", "http", "package"] = "huggingface"
    identifier: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    trust_remote_code: bool = False


class ModelConfig(Section):
    """Precision and placement hints."""

    fp16: bool | None = None
    bf16: bool | None = None
    device_map_auto: bool | None = None


class Lora(Section):
    """LoRA settings; defaults of `spec.lora`."""

    r: Positive = 16
    alpha: Annotated[float, Field(gt=0), also("lora_alpha")] = 32
    dropout: Annotated[Fraction, also("lora_dropout")] = 0.05
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: list[str] | str | None = None
    task_type: str = "CAUSAL_LM"
    use_rslora: bool = False


class TrainingAdapter(Section):
    """`model.adapter`: the older form of `lora`, which also names the method."""

    type: Literal["lora", "qlora", "adalora", "full"] = "lora"
    r: Positive | None = None
    lora_alpha: Annotated[float | None, also("alpha")] = None
    lora_dropout: Annotated[float | None, also("dropout")] = None
    target_modules: list[str] | str | None = None
    bias: Literal["none", "all", "lora_only"] | None = None
    task_type: str | None = None
    use_rslora: bool | None = None


class Adapter(Section):
    """An adapter that inference applies at run time or merges before it starts."""

    type: Literal["lora"] = "lora"
    apply: Literal["runtime", "merge"] = "runtime"
    path: Annotated[str | None, also("uri", "worker_path")] = None
    task_id: Annotated[str | None, also("taskId")] = None
    url: Annotated[str | None, also("download_url")] = None
    name: str | None = None
    scale: float = 1.0
    headers: dict[str, str] = {}
    archive_format: Annotated[ArchiveFormat, also("archiveFormat")] = "auto"


class Transformers(Section):
    """Arguments of `from_pretrained` for the Transformers engine."""

    device_map: Json = None
    dtype: Annotated[str | None, also("torch_dtype")] = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    use_flash_attention_2: bool = False
    attn_implementation: str | None = None
    low_cpu_mem_usage: bool | None = None
    trust_remote_code: bool | None = None
    batch_size: Positive = 8


class Vllm(Section):
    """vLLM engine arguments; any further field of `EngineArgs` passes through."""

    model_config = ConfigDict(extra="allow")

    tensor_parallel_size: Positive = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_model_len: Positive | None = None
    dtype: str | None = None
    trust_remote_code: bool | None = None
    enforce_eager: bool | None = None


class Model(Section):
    """The model of a stage."""

    source: ModelSource | None = None
    config: ModelConfig = ModelConfig()
    adapter: TrainingAdapter | None = None
    adapters: list[Adapter] = []
    vllm: Vllm | None = None
    transformers: Transformers | None = None


class RewardModel(Section):
    """What scores a generated text."""

    identifier: str | None = None
    type: Literal["sentiment", "classification", "regression", "function"] = "classification"
    scale: float = 1.0
    max_length: Positive | None = None
    positive_label: str | None = None
    negative_label: str | None = None


class CheckpointLoad(Section):
    """A checkpoint that training or inference starts from; it fails the stage when it cannot be loaded."""

    type: Literal["local", "http", "s3", "task"] | None = None
    path: Annotated[str | None, also("uri", "worker_path")] = None
    task_id: Annotated[str | None, also("taskId")] = None
    url: Annotated[str | None, also("download_url")] = None
    filename: str | None = None
    headers: dict[str, str] = {}
    timeout_sec: Annotated[float, Field(gt=0), also("timeoutSec")] = 300.0
    archive_format: Annotated[ArchiveFormat, also("archiveFormat")] = "auto"
    subdir: str | None = None


class Checkpoint(Section):
    """`spec.checkpoint`."""

    load: CheckpointLoad | None = None
