"""`spec.model`, `spec.lora`, `spec.reward_model`: the weights a stage works with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from mloc_dagster.spec.base import Fraction, Json, Positive, Section, also

ArchiveFormat = Literal["auto", "none", "zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"]


class ModelSource(Section):
    """Where weights come from."""

    type: Literal["huggingface", "local", "s3", "git", "http", "package"] = "huggingface"
    """Where the model is fetched from."""
    identifier: Annotated[str, Field(min_length=1)]
    """The model's name there: a hub id, a path, a URL or a package."""
    revision: str | None = None
    """Branch, tag or commit; the main one when not given."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run; counts only where the deployment allows it."""


class ModelConfig(Section):
    """Precision and placement hints."""

    fp16: bool | None = None
    """Use 16-bit floats."""
    bf16: bool | None = None
    """Use bfloat16."""
    device_map_auto: bool | None = None
    """Spread the layers over the devices."""


class Lora(Section):
    """LoRA settings; defaults of `spec.lora`."""

    r: Positive = 16
    """Rank of the matrices."""
    alpha: Annotated[float, Field(gt=0), also("lora_alpha")] = 32
    """Scale of the update: alpha / r."""
    dropout: Annotated[Fraction, also("lora_dropout")] = 0.05
    """Share of activations dropped in the adapter."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    target_modules: list[str] | str | None = None
    """Layers that get an adapter; every linear layer but the head when not given."""
    task_type: str = "CAUSAL_LM"
    """PEFT's name of the task."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead."""


class TrainingAdapter(Section):
    """`model.adapter`: the older form of `lora`, which also names the method."""

    type: Literal["lora", "qlora", "adalora", "full"] = "lora"
    """How the weights are trained."""
    r: Positive | None = None
    """Rank of the matrices."""
    lora_alpha: Annotated[float | None, also("alpha")] = None
    """Scale of the update."""
    lora_dropout: Annotated[float | None, also("dropout")] = None
    """Share of activations dropped in the adapter."""
    target_modules: list[str] | str | None = None
    """Layers that get an adapter."""
    bias: Literal["none", "all", "lora_only"] | None = None
    """Which biases are trained."""
    task_type: str | None = None
    """PEFT's name of the task."""
    use_rslora: bool | None = None
    """Scale by alpha / sqrt(r) instead."""


class Adapter(Section):
    """An adapter that inference applies at run time or merges before it starts."""

    type: Literal["lora"] = "lora"
    """The kind of adapter."""
    apply: Literal["runtime", "merge"] = "runtime"
    """At run time beside the weights, or merged into them first."""
    path: Annotated[str | None, also("uri", "worker_path")] = None
    """A folder or an archive; tried first."""
    task_id: Annotated[str | None, also("taskId")] = None
    """The task whose adapter is used; tried second."""
    url: Annotated[str | None, also("download_url")] = None
    """Where to download an archive; tried third."""
    name: str | None = None
    """What to call it."""
    scale: float = 1.0
    """Strength of the adapter."""
    headers: dict[str, str] = {}
    """HTTP headers of the download."""
    archive_format: Annotated[ArchiveFormat, also("archiveFormat")] = "auto"
    """Format of the archive."""


class Transformers(Section):
    """Arguments of `from_pretrained` for the Transformers engine."""

    device_map: Json = None
    """Where the layers go."""
    dtype: Annotated[str | None, also("torch_dtype")] = None
    """Type of the weights, such as bfloat16."""
    load_in_8bit: bool = False
    """Quantize to 8 bits."""
    load_in_4bit: bool = False
    """Quantize to 4 bits."""
    use_flash_attention_2: bool = False
    """Use FlashAttention 2."""
    attn_implementation: str | None = None
    """Attention implementation."""
    low_cpu_mem_usage: bool | None = None
    """Load the weights piece by piece."""
    trust_remote_code: bool | None = None
    """Whether code that comes with the model may run."""
    batch_size: Positive = 8
    """Prompts that are generated at once."""


class Vllm(Section):
    """vLLM engine arguments; any further field of `EngineArgs` passes through."""

    model_config = ConfigDict(extra="allow")

    tensor_parallel_size: Positive = 1
    """GPUs that share each layer; clipped to those granted."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM takes."""
    max_model_len: Positive | None = None
    """Longest prompt and answer together, in tokens."""
    dtype: str | None = None
    """Type of the weights."""
    trust_remote_code: bool | None = None
    """Whether code that comes with the model may run."""
    enforce_eager: bool | None = None
    """Run without CUDA graphs: starts sooner, generates slower."""


class Model(Section):
    """The model of a stage."""

    source: ModelSource | None = None
    """Where the weights come from."""
    config: ModelConfig = ModelConfig()
    """Precision and placement hints."""
    adapter: TrainingAdapter | None = None
    """The older form of lora."""
    adapters: list[Adapter] = []
    """Adapters that inference applies."""
    vllm: Vllm | None = None
    """Arguments of the vLLM engine."""
    transformers: Transformers | None = None
    """Arguments of the Transformers engine; this block alone selects it."""


class RewardModel(Section):
    """What scores a generated text."""

    identifier: str | None = None
    """The model's name."""
    type: Literal["sentiment", "classification", "regression", "function"] = "classification"
    """What its output means."""
    scale: float = 1.0
    """Factor of the score."""
    max_length: Positive | None = None
    """Longest text that is scored, in tokens."""
    positive_label: str | None = None
    """Label that counts for the text."""
    negative_label: str | None = None
    """Label that counts against the text."""

    def path(self) -> str | None:
        """The folder that `identifier` names, when it names one and not a hub id or a function."""
        is_path = self.type != "function" and self.identifier and self.identifier.startswith(("/", ".", "~", "file://"))
        return self.identifier if is_path else None

    def source(self) -> ModelSource | None:
        """The model that is pulled; None for a folder, a function, and a sentiment that names no model."""
        if self.type == "function" or not self.identifier or self.path():
            return None
        return ModelSource(identifier=self.identifier)


class CheckpointLoad(Section):
    """A checkpoint that training or inference starts from; it fails the stage when it cannot be loaded."""

    type: Literal["local", "http", "s3", "task"] | None = None
    """Where the checkpoint is."""
    path: Annotated[str | None, also("uri", "worker_path")] = None
    """A folder or an archive; tried first."""
    task_id: Annotated[str | None, also("taskId")] = None
    """The task whose weights are used; tried second."""
    url: Annotated[str | None, also("download_url")] = None
    """Where to download an archive; tried third."""
    filename: str | None = None
    """Name of the downloaded file."""
    headers: dict[str, str] = {}
    """HTTP headers of the download."""
    timeout_sec: Annotated[float, Field(gt=0), also("timeoutSec")] = 300.0
    """Seconds that the download may take."""
    archive_format: Annotated[ArchiveFormat, also("archiveFormat")] = "auto"
    """Format of the archive."""
    subdir: str | None = None
    """Folder inside the archive."""


class Checkpoint(Section):
    """`spec.checkpoint`."""

    load: CheckpointLoad | None = None
    """The checkpoint to start from."""
