"""`spec.training` and `spec.generation`: how a stage learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from mloc_dagster.spec.base import Fraction, Json, NotNegative, Positive, Section, also

Rate = Annotated[float, Field(ge=0)]


class Training(Section):
    """Trainer arguments; a further key must be a field of the trainer's TRL config class."""

    model_config = ConfigDict(extra="allow")

    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the rows."""
    max_steps: Annotated[int | None, also("steps")] = None
    """Optimizer steps; goes before num_train_epochs."""
    per_device_train_batch_size: Annotated[Positive, also("batch_size")] = 8
    """Rows a device takes at once."""
    gradient_accumulation_steps: Positive = 1
    """Batches that make one optimizer step."""
    learning_rate: Rate | None = None
    """Highest learning rate."""
    warmup_steps: Rate | None = None
    """Steps in which the learning rate rises."""
    weight_decay: Rate = 0.0
    """Weight decay."""
    logging_steps: Positive = 10
    """Steps between two log entries."""
    save_steps: Annotated[Positive | None, also("save_freq")] = None
    """Steps between two checkpoints."""
    save_strategy: Literal["no", "steps", "epoch"] | None = None
    """When checkpoints are written."""
    save_total_limit: Positive | None = None
    """So many checkpoints are kept."""
    save_model: bool = True
    """Whether the final weights are written."""
    max_seq_length: Annotated[Positive | None, also("max_length")] = None
    """Longest row, in tokens."""
    packing: bool = False
    """Put short rows together."""
    fp16: bool | None = None
    """Train in 16-bit floats."""
    bf16: bool | None = None
    """Train in bfloat16."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations again."""
    seed: int = 42
    """Seed of everything random."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this norm."""
    resume_from_path: str | None = None
    """A checkpoint to go on from."""
    output_dir: str | None = None
    """Ignored: results have their own folder."""
    beta: Rate | None = None
    """Strength of the pull towards the reference model."""
    target_kl: Rate | None = None
    """Divergence at which an update stops."""
    kl_coef: Rate | None = None
    """Weight of the divergence in the reward."""
    ppo_epochs: Positive | None = None
    """Passes over each batch of rollouts."""
    mini_batch_size: Positive | None = None
    """Rollouts an update takes."""
    num_mini_batches: Positive | None = None
    """Updates a batch of rollouts is cut into."""
    early_stopping: bool | None = None
    """Stop when target_kl is passed."""
    allow_multi_gpu: bool | None = None
    """Whether several GPUs may be used."""
    visible_devices: Json = None
    """Devices that may be used."""
    primary_gpu: NotNegative | None = None
    """The first device."""
    nproc_per_node: Positive | None = None
    """Processes on one machine."""
    deepspeed: dict[str, Json] | str | None = None
    """DeepSpeed configuration."""
    auto_deepspeed: bool | None = None
    """Write a DeepSpeed configuration by itself."""
    auto_deepspeed_stage: Annotated[int | None, Field(ge=0, le=3)] = None
    """ZeRO stage of that configuration."""
    fsdp: str | list[str] | bool | None = None
    """Options of fully sharded data parallelism."""
    fsdp_config: dict[str, Json] | None = None
    """Its configuration."""
    ddp_find_unused_parameters: bool | None = None
    """Look for parameters without a gradient."""
    log_with: str | list[str] | None = None
    """Trackers that metrics are sent to."""
    tracker_project_name: str | None = None
    """Project name at the tracker."""


class Generation(Section):
    """How ppo and grpo sample."""

    max_new_tokens: Annotated[Positive, also("max_tokens")] = 256
    """Longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Randomness."""
    top_p: Fraction = 1.0
    """Share of probability that is sampled from."""
    top_k: NotNegative | None = None
    """Number of tokens that are sampled from."""
    stop: Annotated[str | list[str] | None, also("stop_sequences")] = None
    """Texts that end an answer."""
    do_sample: bool = True
    """Sample, or take the likeliest token."""
