"""`reward`, `dpo`, `grpo`: what they read. Each recipe has a file of its name, loaded only when it runs."""

from __future__ import annotations

from executors.base import Result
from executors.context import TaskContext

_ROWS = (
    "url", "dataset_name", "config_name", "name", "revision", "split", "max_samples", "shuffle", "seed", "jsonl.*",
    "prompts", "preferences", "prompt_column", "source.*",
)  # fmt: skip
_PAIRS = ("chosen_column", "rejected_column", "separator")
_TRAINING = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "warmup_steps", "weight_decay", "logging_steps", "save_steps", "save_strategy", "save_total_limit", "save_model",
    "fp16", "bf16", "gradient_checkpointing", "seed", "max_grad_norm", "resume_from_path", "deepspeed", "fsdp",
    "fsdp_config", "ddp_find_unused_parameters", "log_with", "tracker_project_name",
    "allow_multi_gpu", "visible_devices", "primary_gpu", "nproc_per_node", "auto_deepspeed", "auto_deepspeed_stage",
)  # fmt: skip
_ALL = frozenset({
    "model.source.*", "model.config.*", "model.adapter.*", "model.transformers.*", "lora.*", "checkpoint.*",
    "enforce_cpu",
    *(f"data.{key}" for key in _ROWS), *(f"training.{key}" for key in _TRAINING),
})  # fmt: skip


class RewardExecutor:
    """`reward`: trains a model that scores texts, from pairs of a better and a worse answer."""

    name = "reward"
    inline = False
    distributed = True
    loads_torch = True
    uses = _ALL | {"training.max_seq_length", *(f"data.{key}" for key in _PAIRS)}
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Train and leave `final_model/` (or `final_lora/`)."""
        from executors.training.lora import adapter_of
        from executors.training.reward import train_reward_model

        return train_reward_model(ctx, adapter_of(ctx))


class DpoExecutor:
    """`dpo`: makes better answers likelier than worse ones, without a reward model."""

    name = "dpo"
    inline = False
    distributed = True
    loads_torch = True
    uses = _ALL | {"training.max_seq_length", "training.beta", *(f"data.{key}" for key in _PAIRS)}
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Train and leave `final_model/` (or `final_lora/`)."""
        from executors.training.dpo import prefer
        from executors.training.lora import adapter_of

        return prefer(ctx, adapter_of(ctx))


class GrpoExecutor:
    """`grpo`: samples several answers a prompt and makes those with the higher reward likelier."""

    name = "grpo"
    inline = False
    distributed = True
    loads_torch = True
    uses = _ALL | {
        "training.beta", "generation.*", "reward_model.*", "data.response_column", "data.text_field",
        "data.prompt_template",
    }  # fmt: skip
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Train and leave `final_model/` (or `final_lora/`)."""
        from executors.training.grpo import reinforce
        from executors.training.lora import adapter_of

        return reinforce(ctx, adapter_of(ctx))
