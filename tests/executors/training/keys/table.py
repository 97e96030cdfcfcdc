"""Every key of SPEC §9, what a file may say for it, and how it is proven for each trainer.

For a trainer that reads a key one of two things proves it, or both: `argument` names the field of the library's object
that holds the value (`test_arguments_of_trainers`), `seen_by` names tests that observe its effect. For a trainer that
does not read it, validation names the key (`test_every_key`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mloc_dagster.spec.base import Json

SFT, LORA_SFT, REWARD, DPO, GRPO, PPO = TRAINERS = ("sft", "lora_sft", "reward", "dpo", "grpo", "ppo")
SUPERVISED, SAMPLING = (SFT, LORA_SFT), (GRPO, PPO)
SHARDED = (SFT, LORA_SFT, REWARD, DPO, GRPO)
"""Trainers that can spread their weights."""


@dataclass(frozen=True)
class Key:
    """One key. `value` is what the files of the tests say for it; `read_by` are the trainers that use it."""

    value: Json
    argument: str = ""
    """Field of the trainer's config, of PEFT's, or of what samples answers."""
    arrives: Json = None
    """What that field then holds, where it is not `value`."""
    seen_by: tuple[str, ...] = ()
    """`module::test` below `tests.executors`."""
    read_by: tuple[str, ...] = TRAINERS
    also: tuple[str, ...] = ()
    """Other spellings."""

    @property
    def expected(self) -> Json:
        """What the field holds."""
        return self.value if self.arrives is None else self.arrives


_T = "training."
_RUNS, _LAYOUT, _SHARES = "training.keys.test_runs::", "training.keys.test_layout::", "training.keys.test_sharding::"
_PPO, _LOAD = "training.ppo.test_ppo::", "training.keys.test_checkpoint_load::"
_DEVICES = (_LAYOUT + "test_each_trainer_is_laid_out_as_asked", _LAYOUT + "test_without_devices_they_are_told")
_SHARDING = (_SHARES + "test_what_spreads_the_weights_arrives", _SHARES + "test_on_a_cpu_it_is_told")
_PRECISION = (_SHARES + "test_precision_counts_on_a_gpu", _SHARES + "test_on_a_cpu_it_is_told")
_STEP = _PPO + "test_what_a_step_does"
_SIZES, _KL = "training.ppo.test_settings::test_sizes", "training.ppo.test_settings::test_what_target_kl_does"
_TRACKERS = (
    _T + "test_arguments::test_tensorboard_gets_the_losses",
    _T + "test_arguments::test_an_absent_tracker_is_told",
)

TRAINING: Mapping[str, Key] = {
    "num_train_epochs": Key(2.5, "num_train_epochs", seen_by=(_RUNS + "test_when_it_is_saved",)),
    "max_steps": Key(7, "max_steps", also=("steps",)),
    "per_device_train_batch_size": Key(16, "per_device_train_batch_size", also=("batch_size",)),
    "gradient_accumulation_steps": Key(3, "gradient_accumulation_steps"),
    "learning_rate": Key("3e-4", "learning_rate", 3e-4),
    "warmup_steps": Key(4, "warmup_steps", 4.0),
    "weight_decay": Key(0.125, "weight_decay"),
    "logging_steps": Key(3, "logging_steps"),
    "save_steps": Key(1, seen_by=(_RUNS + "test_what_is_saved",), also=("save_freq",)),
    "save_strategy": Key(
        "epoch", seen_by=(_RUNS + "test_when_it_is_saved", _SHARES + "test_what_another_key_makes_idle_is_told")
    ),
    "save_total_limit": Key(2, seen_by=(_RUNS + "test_what_is_saved",)),
    "save_model": Key(False, seen_by=(_RUNS + "test_what_is_saved",)),
    "max_seq_length": Key(48, "max_length", read_by=(SFT, LORA_SFT, REWARD, DPO, PPO), also=("max_length",)),
    "packing": Key(True, "packing", read_by=SUPERVISED),
    "fp16": Key(True, seen_by=_PRECISION),
    "bf16": Key(True, seen_by=_PRECISION),
    "gradient_checkpointing": Key(True, "gradient_checkpointing"),
    "seed": Key(5, "seed"),
    "max_grad_norm": Key(0.5, "max_grad_norm"),
    "resume_from_path": Key("/x", seen_by=(_RUNS + "test_training_goes_on_from_a_path",)),
    "output_dir": Key("./here", read_by=()),
    "beta": Key(0.3, "beta", read_by=(DPO, GRPO)),
    "target_kl": Key(0.2, "target_kl", seen_by=(_STEP, _KL), read_by=(PPO,)),
    "kl_coef": Key(
        0.7, "kl_coef", seen_by=(_STEP, _PPO + "test_a_strong_coefficient_keeps_the_policy_near"), read_by=(PPO,)
    ),
    "ppo_epochs": Key(2, "ppo_epochs", seen_by=(_STEP,), read_by=(PPO,)),
    "mini_batch_size": Key(12, "mini_batch_size", seen_by=(_STEP, _SIZES), read_by=(PPO,)),
    "num_mini_batches": Key(4, "num_mini_batches", seen_by=(_STEP, _SIZES), read_by=(PPO,)),
    "early_stopping": Key(True, "early_stopping", seen_by=(_STEP, _KL), read_by=(PPO,)),
    "allow_multi_gpu": Key(False, seen_by=_DEVICES),
    "visible_devices": Key([1, 3], seen_by=_DEVICES),
    "primary_gpu": Key(2, seen_by=_DEVICES),
    "nproc_per_node": Key(
        2,
        seen_by=(
            _LAYOUT + "test_each_trainer_is_laid_out_as_asked",
            "distributed.test_training::test_two_processes_learn_as_one_with_the_same_global_batch",
            "training.ppo.test_processes::test_two_processes_learn_what_one_learns_from_the_same_rollouts",
        ),
    ),
    "deepspeed": Key({"zero_optimization": {"stage": 1}}, seen_by=_SHARDING, read_by=SHARDED),
    "auto_deepspeed": Key(True, seen_by=_SHARDING, read_by=SHARDED),
    "auto_deepspeed_stage": Key(3, seen_by=_SHARDING, read_by=SHARDED),
    "fsdp": Key("full_shard", seen_by=_SHARDING, read_by=SHARDED),
    "fsdp_config": Key({"limit_all_gathers": True}, seen_by=_SHARDING, read_by=SHARDED),
    "ddp_find_unused_parameters": Key(True, "ddp_find_unused_parameters", read_by=SHARDED),
    "log_with": Key("tensorboard", "report_to", ["tensorboard"], seen_by=_TRACKERS),
    "tracker_project_name": Key(
        "mine", "project", seen_by=(_T + "test_arguments::test_projects_and_places_of_trackers",)
    ),
}

LORA: Mapping[str, Key] = {
    "r": Key(3, "r"),
    "alpha": Key(5, "lora_alpha", 5.0, also=("lora_alpha",)),
    "dropout": Key(0.25, "lora_dropout", also=("lora_dropout",)),
    "bias": Key("lora_only", "bias"),
    "target_modules": Key(["q_proj", "v_proj"], "target_modules", {"q_proj", "v_proj"}),
    "task_type": Key("FEATURE_EXTRACTION", "task_type", seen_by=(
        _T + "test_reward::test_task_type_of_a_shared_lora_section_is_mended_with_a_warning",
    )),
    "use_rslora": Key(True, "use_rslora"),
}  # fmt: skip
"""PEFT's config holds them; `test_lora` shows that both dialects mean the same."""

_CLASSIFIERS, _SCORES = (
    "training.test_reward_models::",
    "training.keys.test_arguments_of_trainers::test_the_score_is_as_asked",
)
REWARD_MODEL: Mapping[str, Key] = {
    "identifier": Key("length", seen_by=(_SCORES, _CLASSIFIERS + "test_labels_that_are_named_count"), read_by=SAMPLING),
    "type": Key("function", seen_by=(_SCORES, _CLASSIFIERS + "test_labels_that_cannot_be"), read_by=SAMPLING),
    "scale": Key(-2.0, seen_by=(_SCORES, _T + "test_reward::test_scale_and_max_length"), read_by=SAMPLING),
    "max_length": Key(3, seen_by=(_SCORES, _T + "test_reward::test_scale_and_max_length"), read_by=SAMPLING),
    "positive_label": Key("GOOD", seen_by=(_CLASSIFIERS + "test_labels_that_are_named_count",), read_by=SAMPLING),
    "negative_label": Key("BAD", seen_by=(_CLASSIFIERS + "test_labels_that_are_named_count",), read_by=SAMPLING),
}

_CHANGES, _NARROWS = (
    _PPO + "test_each_key_changes_what_it_says",
    "training.ppo.test_rollout::test_what_narrows_sampling_to_the_likeliest_token",
)
_TOLD = "training.test_grpo::test_what_trl_cannot_do_is_told"
GENERATION: Mapping[str, Key] = {
    "max_new_tokens": Key(9, "max_new_tokens", seen_by=(_CHANGES,), read_by=SAMPLING, also=("max_tokens",)),
    "temperature": Key(0.75, "temperature", seen_by=(_CHANGES,), read_by=SAMPLING),
    "top_p": Key(0.5, "top_p", seen_by=(_CHANGES, _NARROWS), read_by=SAMPLING),
    "top_k": Key(4, "top_k", seen_by=(_NARROWS,), read_by=SAMPLING),
    "stop": Key("!", seen_by=(_TOLD, _CHANGES), read_by=SAMPLING, also=("stop_sequences",)),
    "do_sample": Key(False, seen_by=(_TOLD, _NARROWS), read_by=SAMPLING),
}

_EACH = _LOAD + "test_each_trainer_starts_from_it"
CHECKPOINT_LOAD: Mapping[str, Key] = {
    "type": Key(
        "http",
        seen_by=(
            _LOAD + "test_the_type_says_which_alternative_goes_first",
            _LOAD + "test_a_type_of_nothing_that_is_given_is_told",
        ),
    ),
    "path": Key("/x", seen_by=(_EACH, _LOAD + "test_every_spelling_is_read"), also=("uri", "worker_path")),
    "task_id": Key("t", seen_by=(_LOAD + "test_every_spelling_is_read",), also=("taskId",)),
    "url": Key("http://127.0.0.1/x", seen_by=(_LOAD + "test_every_spelling_is_read",), also=("download_url",)),
    "filename": Key(
        "w.zip", seen_by=(_LOAD + "test_the_filename_picks_a_file", _LOAD + "test_the_filename_names_a_download")
    ),
    "headers": Key({"X-Key": "k"}, seen_by=(_LOAD + "test_headers_are_sent",)),
    "timeout_sec": Key(9, seen_by=(_LOAD + "test_a_slow_server_is_given_up",), also=("timeoutSec",)),
    "archive_format": Key("zip", seen_by=(_LOAD + "test_the_format_goes_before_the_name",), also=("archiveFormat",)),
    "subdir": Key("a", seen_by=(_LOAD + "test_the_subdir_is_taken",)),
}

SECTIONS: Mapping[str, Mapping[str, Key]] = {
    "training": TRAINING,
    "lora": LORA,
    "reward_model": REWARD_MODEL,
    "generation": GENERATION,
    "checkpoint.load": CHECKPOINT_LOAD,
}
CELLS = [(f"{section}.{name}", trainer) for section, keys in SECTIONS.items() for name in keys for trainer in TRAINERS]
"""Each key with each trainer."""


def key_of(dotted: str) -> Key:
    """The entry of `section.name`."""
    section, _, name = dotted.rpartition(".")
    return SECTIONS[section][name]
