"""`ppo`: what it reads. The recipe is in `recipe.py`, loaded only when it runs."""

from __future__ import annotations

from executors.base import Result
from executors.context import TaskContext

_DATA = (
    "url", "dataset_name", "config_name", "name", "revision", "split", "max_samples", "shuffle", "seed", "jsonl.*",
    "prompts", "preferences", "prompt_column", "response_column", "text_field", "prompt_template", "source.*",
)  # fmt: skip
_TRAINING = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "warmup_steps", "weight_decay", "logging_steps", "save_steps", "save_strategy", "save_total_limit", "save_model",
    "max_seq_length", "fp16", "bf16", "gradient_checkpointing", "seed", "max_grad_norm", "resume_from_path",
    "target_kl", "kl_coef", "ppo_epochs", "mini_batch_size", "num_mini_batches", "early_stopping",
    "nproc_per_node", "allow_multi_gpu", "visible_devices", "primary_gpu", "log_with", "tracker_project_name",
)  # fmt: skip


class PpoExecutor:
    """`ppo`: samples answers and makes those that earn more than the value head expected likelier."""

    name = "ppo"
    inline = False
    distributed = True
    loads_torch = True
    uses = frozenset({
        "model.source.*", "model.config.*", "model.adapter.*", "model.transformers.*", "lora.*", "checkpoint.*",
        "enforce_cpu", "generation.*", "reward_model.*",
        *(f"data.{key}" for key in _DATA), *(f"training.{key}" for key in _TRAINING),
    })  # fmt: skip
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Train and leave `final_model/` (or `final_lora/`)."""
        from executors.training.lora import adapter_of
        from executors.training.ppo.recipe import optimize

        return optimize(ctx, adapter_of(ctx))
