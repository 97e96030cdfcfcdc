"""`sft` and `lora_sft`: what they read. The recipe is in `supervised.py`, loaded only when it runs."""

from __future__ import annotations

from executors.base import ExecutorError, Result
from executors.context import TaskContext

_DATA = (
    "url", "dataset_name", "config_name", "name", "revision", "split", "max_samples", "shuffle", "seed", "jsonl.*",
    "prompts", "preferences", "prompt_column", "response_column", "chosen_column", "text_field", "separator",
    "prompt_template", "source.*",
)  # fmt: skip
_TRAINING = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "warmup_steps", "weight_decay", "logging_steps", "save_steps", "save_strategy", "save_total_limit", "save_model",
    "max_seq_length", "packing", "fp16", "bf16", "gradient_checkpointing", "seed", "max_grad_norm", "resume_from_path",
    "deepspeed", "fsdp", "fsdp_config", "ddp_find_unused_parameters", "log_with", "tracker_project_name",
    "allow_multi_gpu", "visible_devices", "primary_gpu", "nproc_per_node", "auto_deepspeed", "auto_deepspeed_stage",
)  # fmt: skip
TRAINING_OF_OTHERS = frozenset({
    "output_dir", "beta", "target_kl", "kl_coef", "ppo_epochs", "mini_batch_size", "num_mini_batches", "early_stopping",
})  # fmt: skip
"""Typed keys of `spec.training` that supervised training does not read. Any further key goes to TRL's SFTConfig."""
_USES = frozenset({
    "model.source.*", "model.config.*", "model.adapter.*", "model.transformers.*", "lora.*", "checkpoint.*",
    "enforce_cpu", *(f"data.{key}" for key in _DATA), *(f"training.{key}" for key in _TRAINING),
})  # fmt: skip


class SftExecutor:
    """`sft`: trains all weights, or an adapter where `lora` or `model.adapter` asks for one."""

    name = "sft"
    inline = False
    distributed = True
    loads_torch = True
    uses = _USES
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Train and leave `final_model/` (or `final_lora/`)."""
        from executors.training.lora import adapter_of
        from executors.training.supervised import fine_tune

        return fine_tune(ctx, adapter_of(ctx))


class LoraSftExecutor:
    """`lora_sft`: trains LoRA matrices and leaves the weights of the model alone."""

    name = "lora_sft"
    inline = False
    distributed = True
    loads_torch = True
    uses = _USES
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Train and leave `final_lora/`."""
        from executors.training.lora import lora_settings
        from executors.training.supervised import fine_tune

        if ctx.spec.model.adapter and ctx.spec.model.adapter.type == "full":
            raise ExecutorError("model.adapter.type is full, but taskType is lora_sft.", "Write taskType: sft.")
        return fine_tune(ctx, lora_settings(ctx))
