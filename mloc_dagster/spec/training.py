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
    max_steps: Annotated[int | None, also("steps")] = None
    per_device_train_batch_size: Annotated[Positive, also("batch_size")] = 8
    gradient_accumulation_steps: Positive = 1
    learning_rate: Rate | None = None
    warmup_steps: Rate | None = None
    weight_decay: Rate = 0.0
    logging_steps: Positive = 10
    save_steps: Annotated[Positive | None, also("save_freq")] = None
    save_strategy: Literal["no", "steps", "epoch"] | None = None
    save_total_limit: Positive | None = None
    save_model: bool = True
    max_seq_length: Annotated[Positive | None, also("max_length")] = None
    packing: bool = False
    fp16: bool | None = None
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    seed: int = 42
    max_grad_norm: Rate = 1.0
    resume_from_path: str | None = None
    output_dir: str | None = None
    beta: Rate | None = None
    target_kl: Rate | None = None
    kl_coef: Rate | None = None
    ppo_epochs: Positive | None = None
    mini_batch_size: Positive | None = None
    num_mini_batches: Positive | None = None
    early_stopping: bool | None = None
    allow_multi_gpu: bool | None = None
    visible_devices: Json = None
    primary_gpu: NotNegative | None = None
    nproc_per_node: Positive | None = None
    deepspeed: dict[str, Json] | str | None = None
    auto_deepspeed: bool | None = None
    auto_deepspeed_stage: Annotated[int | None, Field(ge=0, le=3)] = None
    fsdp: str | list[str] | bool | None = None
    fsdp_config: dict[str, Json] | None = None
    ddp_find_unused_parameters: bool | None = None
    log_with: str | list[str] | None = None
    tracker_project_name: str | None = None


class Generation(Section):
    """How ppo and grpo sample."""

    max_new_tokens: Annotated[Positive, also("max_tokens")] = 256
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Fraction = 1.0
    top_k: NotNegative | None = None
    stop: Annotated[str | list[str] | None, also("stop_sequences")] = None
    do_sample: bool = True
