"""Proximal policy optimization: prompts, reward, weights, trainer, result.

A plain model gets the prompt as it stands, a model with a chat template a conversation, exactly as in inference. The
reward is that of `executors.training.reward_functions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from accelerate.utils import set_seed
from peft import PeftModel, get_peft_model
from trl.trainer.utils import disable_dropout_in_model

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from executors.inference.chat import tokenize
from executors.messages import Text
from executors.prompts import PromptRow
from executors.rows import Asked, as_turns, asked, needs_template
from executors.training.loading import load_model
from executors.training.lora import adapter_config
from executors.training.ppo.rollout import is_sampled
from executors.training.ppo.settings import PPOConfig, pass_through
from executors.training.ppo.trainer import PPOTrainer, Score
from executors.training.recipe import Setup, callbacks, fit, prepare
from executors.training.reward_functions import RewardFunction, check_reward, reward_function
from mloc_dagster.spec.model import Lora
from mloc_dagster.spec.training import Training

_LORA_LEARNING_RATE = 3e-5
"""Ten times the default for all weights."""
_SHARDED = ("deepspeed", "auto_deepspeed", "fsdp", "fsdp_config")


def optimize(ctx: TaskContext, lora: Lora | None) -> Result:
    """Rows, settings and reward are checked before any weights are loaded."""
    _refuse(ctx.spec.training)
    setup = prepare(ctx, PPOConfig, lora, learning_rate=_LORA_LEARNING_RATE if lora else None)
    rows = asked(setup.rows)
    warnings = [*check_reward(ctx, setup.rows), *setup.args.unread, *_unsampled(ctx)]
    reward = reward_function(ctx)
    policy, more = _policy(ctx, setup, lora)
    prompts, cut = _prompts(ctx, setup, rows, policy)
    trainer = PPOTrainer(
        policy, setup.args, setup.tokenizer, prompts, _score(reward, rows, bool(setup.tokenizer.chat_template)),
        ctx.spec.generation, callbacks(ctx), ctx.stop,
    )  # fmt: skip
    warnings += [*more, *cut]
    return fit(ctx, setup, trainer, rows=len(rows), warnings=warnings, logged=("reward", "kl"))


def _refuse(training: Training) -> None:
    """Raise ExecutorError for what PPO would have to ignore."""
    known = pass_through()
    for key in training.model_extra or {}:
        if key not in known:
            near = get_close_matches(key, [*known, *type(training).model_fields], n=1)
            guess = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."
            raise ExecutorError(f"spec.training.{key} is no key of the language and none of PPO's.", guess)
    for key in _SHARDED:
        if getattr(training, key):
            raise ExecutorError(
                f"training.{key} is given, but PPO does not shard its weights.",
                "Remove it; lora and gradient_checkpointing save memory.",
            )


def _unsampled(ctx: TaskContext) -> list[str]:
    if is_sampled(ctx.spec.generation):
        return []
    return ["generation samples nothing: each prompt has one answer, so PPO finds no better one"]


def _policy(ctx: TaskContext, setup: Setup, lora: Lora | None) -> tuple[Any, list[str]]:
    """The model to train, with its adapter, and warnings."""
    model, warnings = load_model(ctx, setup.start, lora, setup.gpu)
    if lora and not isinstance(model, PeftModel):
        set_seed(setup.args.seed)
        try:
            model = get_peft_model(model, adapter_config(ctx, lora))
        except ValueError as error:
            raise ExecutorError(f"PEFT refuses spec.lora: {error}", "Mend the key.") from error
    if setup.args.disable_dropout:
        disable_dropout_in_model(model)
    if setup.tokenizer.pad_token_id is None:
        setup.tokenizer.pad_token = setup.tokenizer.eos_token
    return model, warnings


def _prompts(ctx: TaskContext, setup: Setup, rows: Sequence[Asked], policy: Any) -> tuple[list[list[int]], list[str]]:
    """Token ids of each row, so long that the longest answer has room; and a warning when some were cut."""
    if not setup.tokenizer.chat_template and not all(isinstance(one.prompt, str) for one in rows):
        raise needs_template(setup.rows.table)
    context = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    ids = tokenize(setup.tokenizer, [PromptRow(index, one.prompt) for index, one in enumerate(rows)], None, None)
    answer, most = ctx.spec.generation.max_new_tokens, setup.args.max_length
    if most is not None:
        if most <= answer:
            raise ExecutorError(
                f"training.max_seq_length is {most}, but generation.max_new_tokens is {answer}: no token is left for "
                "the prompt.",
                "Write a larger max_seq_length or a smaller max_new_tokens.",
            )
        long = [index for index, one in enumerate(ids) if len(one) > most - answer]
        ids = [one[-(most - answer) :] for one in ids]
        where = f"{len(long)} of {len(ids)} prompts (first: row {long[0]})" if long else ""
        warnings = [f"{where} lost their beginning, to leave {answer} of {most} tokens to the answer"] if long else []
    else:
        warnings = []
    full = [index for index, one in enumerate(ids) if context and len(one) + answer > context]
    if full:
        raise ExecutorError(
            f"The prompt of row {full[0]} has {len(ids[full[0]])} tokens; with generation.max_new_tokens {answer} that "
            f"is more than the model's context of {context} ({len(full)} such rows).",
            "Write training.max_seq_length to cut prompts, or a smaller max_new_tokens.",
        )
    return ids, warnings


def _score(reward: RewardFunction, rows: Sequence[Asked], chat: bool) -> Score:
    """The reward of answers to rows. It sees the prompt as the model does: turns where there is a chat template."""

    def score(numbers: list[int], answers: list[str]) -> list[float]:
        shown: list[Text] = [as_turns(rows[one].prompt, "user") if chat else rows[one].prompt for one in numbers]
        found = [{**rows[one].row, "prompt": prompt} for one, prompt in zip(numbers, shown, strict=True)]
        return reward([_plain(prompt) for prompt in shown], answers, found)

    return score


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)
