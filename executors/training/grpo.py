"""Group relative policy optimization with TRL's GRPOTrainer (Shao et al. 2024, "DeepSeekMath", §4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from executors.messages import Text
from executors.rows import Asked, TrainingRows, as_turns, asked, needs_template
from executors.training.loading import load_model
from executors.training.lora import adapter_config
from executors.training.recipe import callbacks, fit, make_trainer, prepare
from executors.training.reward_functions import RewardFunction, check_reward, reward_function
from executors.weights import trusts_code
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.model import Lora

_LORA_LEARNING_RATE = 1e-5
"""Ten times TRL's default for all weights, as its documentation advises for adapters."""
_ROW = "row_index"
_RENAMED = {"max_new_tokens": "max_completion_length", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}


def reinforce(ctx: TaskContext, lora: Lora | None) -> Result:
    """Prompts, reward, weights, trainer, checkpoints, result. Rows and reward are checked before weights are loaded."""
    sampling, warnings = _sampling(ctx)
    rate = _LORA_LEARNING_RATE if lora else None
    setup = prepare(ctx, GRPOConfig, lora, learning_rate=rate, more=sampling)
    _refuse_hidden_rows(setup.args)
    setup.args.trust_remote_code = trusts_code(ctx)  # the reference is loaded from the same folder as the model
    prompts = asked(setup.rows)
    dataset = _as_dataset(prompts, setup.rows, has_chat_template=bool(setup.tokenizer.chat_template))
    warnings += check_reward(ctx, setup.rows)
    reward = reward_function(ctx)
    model, more = load_model(ctx, setup.start, lora, setup.gpu)
    trainer: Any = make_trainer(
        ResumableGRPOTrainer,
        setup,
        model=model,
        reward_funcs=_for_trl(reward, [one.row for one in prompts]),
        train_dataset=dataset,
        peft_config=adapter_config(ctx, lora) if lora and not isinstance(model, PeftModel) else None,
        callbacks=callbacks(ctx),
    )
    if trainer.ref_model is not None and setup.start.adapter:
        trainer.ref_model.load_state_dict(model.state_dict())  # the merged weights, not those of the base model
    logged = ("reward", "kl", "completions/mean_length")
    return fit(ctx, setup, trainer, rows=len(dataset), warnings=[*warnings, *more], logged=logged)


class ResumableGRPOTrainer(GRPOTrainer):
    """TRL's trainer that goes on exactly where a checkpoint was written.

    A checkpoint also holds the count of micro-steps and the sampled answers that are still to be learned from, since
    `steps_per_generation` or `num_iterations` use a batch of them for several updates. The order of the prompts in an
    epoch follows from seed and epoch alone.
    """

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        stock = super()._get_train_sampler(dataset)
        if not isinstance(stock, RepeatSampler):
            return stock
        return _EpochSampler(
            stock.data_source, stock.mini_repeat_count, stock.batch_size, stock.repeat_count, stock.shuffle, stock.seed
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        args: Any = self.args
        unfinished = self._step % (args.steps_per_generation * self.num_iterations) != 0
        state = {"step": self._step, "buffer": self._buffered_inputs if unfinished else None}
        torch.save(state, self._sampled(Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        file = self._sampled(Path(checkpoint)) if checkpoint else None
        if file is not None and file.exists():
            state = torch.load(file, map_location=self.accelerator.device, weights_only=True)
            self._step, self._buffered_inputs = state["step"], state["buffer"]

    def _sampled(self, checkpoint: Path) -> Path:
        return checkpoint / f"sampled_{self.accelerator.process_index}.pt"


class _EpochSampler(RepeatSampler):
    """TRL's sampler with an order that does not depend on how many epochs this process has seen."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


def _sampling(ctx: TaskContext) -> tuple[dict[str, Json], list[str]]:
    """`spec.generation` as keys of GRPOConfig, and warnings for what GRPO has no use for."""
    generation, extra = ctx.spec.generation, ctx.spec.training.model_extra or {}
    given = generation.model_fields_set
    if generation.temperature == 0:
        raise ExecutorError(
            "generation.temperature is 0, but GRPO compares different answers to one prompt.", "Write 0.7 to 1."
        )
    warnings = []
    if "do_sample" in given and not generation.do_sample:
        warnings.append("generation.do_sample false is not used: GRPO compares sampled answers")
    values = {new: getattr(generation, key) for key, new in _RENAMED.items() if getattr(generation, key) is not None}
    values = {new: values[new] for key, new in _RENAMED.items() if key in given and new in values}
    for new, value in values.items():
        if extra.get(new, value) != value:
            raise ExecutorError(
                f"training.{new} is {extra[new]!r}, and spec.generation says {value!r}.", "Keep one of them."
            )
    stop = [generation.stop] if isinstance(generation.stop, str) else generation.stop
    if stop and extra.get("use_vllm"):
        values["generation_kwargs"] = {"stop": stop} | extra.get("generation_kwargs", {})
    elif stop:
        warnings.append("generation.stop is not used: TRL samples with transformers, which ends at the end token only")
    if extra.get("use_vllm") and find_spec("vllm") is None:
        raise ExecutorError("training.use_vllm is true, but vllm is not installed here.", "Remove the key.")
    return values, warnings


def _refuse_hidden_rows(args: GRPOConfig) -> None:
    if args.remove_unused_columns:
        raise ExecutorError(
            "training.remove_unused_columns is true, which would hide the rows from the reward.", "Remove the key."
        )


def _as_dataset(prompts: Sequence[Asked], rows: TrainingRows, *, has_chat_template: bool) -> Dataset:
    """Prompts in TRL's format, and the number of the row that each came from; kept in memory."""
    if not has_chat_template and not all(isinstance(one.prompt, str) for one in prompts):
        raise needs_template(rows.table)
    shown = [as_turns(one.prompt, "user") if has_chat_template else one.prompt for one in prompts]
    return Dataset.from_list([{"prompt": prompt, _ROW: index} for index, prompt in enumerate(shown)])


def _for_trl(reward: RewardFunction, rows: Sequence[Mapping[str, Json]]) -> Any:
    """The reward in TRL's form: texts instead of turns, whole rows instead of columns."""

    def scored(prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        found = [{**rows[index], "prompt": prompt} for index, prompt in zip(columns[_ROW], prompts, strict=True)]
        return reward([_plain(prompt) for prompt in prompts], [_plain(answer) for answer in completions], found)

    scored.__name__ = "reward"
    return scored


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)
