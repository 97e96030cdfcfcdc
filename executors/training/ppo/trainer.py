"""Proximal policy optimization of a language model, in the manner of TRL's trainers.

A step samples answers, scores them, and then makes several passes over them. Schulman et al. 2017, "Proximal Policy
Optimization Algorithms"; for language models Ziegler et al. 2019, "Fine-Tuning Language Models from Human
Preferences"; details as in Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO".
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState

from executors.training.ppo.actor_critic import ActorCritic, Reference
from executors.training.ppo.advantages import adapted, generalized_advantages, token_rewards, whitened
from executors.training.ppo.learner import Experience, Learner, Tokens
from executors.training.ppo.random_state import RandomState
from executors.training.ppo.rollout import (
    Abandoned,
    Answers,
    Sampler,
    chunks,
    ends_of,
    is_sampled,
    joined,
    rows_of_step,
)
from executors.training.ppo.settings import PPOConfig
from mloc_dagster.spec.training import Generation

Score = Callable[[list[int], list[str]], list[float]]
"""Takes row numbers and the answers to them, and returns a reward for each answer."""
_STATE = "ppo_state.json"


class PPOTrainer(Trainer):
    """Optimizer, schedule, checkpoints, callbacks and logs are those of transformers; the loop is PPO's own.

    `prompts` are token ids by row. Beyond what a Trainer saves, checkpoints hold the value head and the coefficient of
    the divergence; the place in the data is the number of the step.
    """

    args: PPOConfig

    def __init__(
        self, policy: Any, args: PPOConfig, tokenizer: Any, prompts: Sequence[list[int]], score: Score,
        generation: Generation, callbacks: list[TrainerCallback], stop: threading.Event,
    ) -> None:  # fmt: skip
        super().__init__(model=policy, args=args, processing_class=tokenizer, callbacks=callbacks)
        alone = self.accelerator.num_processes == 1  # else processes must agree, which they do between steps
        self._prompts, self._score = prompts, score
        self._sampler = Sampler(tokenizer, generation, ends_of(policy, tokenizer), stop if alone else threading.Event())
        self._temperature = generation.temperature if is_sampled(generation) else 1.0
        self._kl_coef = args.kl_coef
        self._since_log: list[dict[str, float]] = []
        self._critic = ActorCritic(policy).to(args.device)
        self._reference = Reference(policy)

    def train(self, resume_from_checkpoint: str | None = None, **_: Any) -> None:  # pyright: ignore
        """Train to the last step, or until a callback asks to stop. A checkpoint continues with the same numbers."""
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self._enable_gradient_checkpointing()
        if checkpoint:
            self._load_from_checkpoint(str(checkpoint))
            self._critic.load_value_head(checkpoint)
        self._prepare(steps=self._steps())
        if checkpoint:
            self._restore(checkpoint)
        self._begin(checkpoint, steps=self._steps())
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
            self._step()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy alone; a checkpoint also gets the value head and the state of PPO."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir and self.args.should_save:
            self._critic.save_value_head(Path(output_dir))
            (Path(output_dir) / _STATE).write_text(json.dumps({"kl_coef": self._kl_coef}), encoding="utf-8")

    def _steps(self) -> int:
        """Steps of the whole training; the rows are answered `num_train_epochs` times unless `max_steps` is given."""
        epochs = self.args.num_train_epochs * len(self._prompts) / self._batch
        return self.args.max_steps if self.args.max_steps > 0 else math.ceil(epochs)

    @property
    def _batch(self) -> int:
        """Rollouts of all processes in a step."""
        return self.args.rollouts * self.accelerator.num_processes

    def _enable_gradient_checkpointing(self) -> None:
        if self.args.gradient_checkpointing:
            settings = self.args.gradient_checkpointing_kwargs or {"use_reentrant": False}
            self._critic.policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
            self._critic.policy.enable_input_require_grads()

    def _prepare(self, steps: int) -> None:
        self.create_optimizer()
        self.optimizer.add_param_group({"params": list(self._critic.value_head.parameters()), "weight_decay": 0.0})
        self.model_wrapped, self.optimizer = self.accelerator.prepare(self._critic, self.optimizer)
        self.create_scheduler(num_training_steps=steps)
        self._learner = Learner(
            self.args, self.accelerator, self.model_wrapped, self.optimizer,
            padding=self._sampler.padding, temperature=self._temperature,
        )  # fmt: skip

    def _restore(self, checkpoint: Path) -> None:
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._load_optimizer_and_scheduler(str(checkpoint))
        self._load_scaler(str(checkpoint))
        self._kl_coef = float(json.loads((checkpoint / _STATE).read_text("utf-8"))["kl_coef"])

    def _begin(self, checkpoint: Path | None, steps: int) -> None:
        self.state.compute_steps(self.args, steps)
        self.state.max_steps, self.state.num_train_epochs = steps, math.ceil(self.args.num_train_epochs)
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        set_seed(self.args.seed, device_specific=True)  # processes sample different answers
        self._load_rng_state(str(checkpoint) if checkpoint else None)

    def _step(self) -> None:
        """One batch of rollouts and what is learned from it. Abandoned sampling ends the training, without a trace."""
        started, before = time.monotonic(), RandomState()
        self._critic.eval()
        try:
            answers = self._sample()
        except Abandoned:
            before.restore()
            self._save_abandoned()
            return
        experience, told = self._experience(answers)
        self._critic.train()
        told |= self._learner.learn(experience, self._after_updates)
        told["learning_rate"] = self._get_learning_rate()
        self.lr_scheduler.step()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        told["tokens_per_second"] = told.pop("tokens") / (time.monotonic() - started)
        self._since_log.append(told)
        self._end_step()

    def _sample(self) -> Answers:
        """This process' share of the step's answers."""
        mine = self.args.rollouts
        rows = rows_of_step(self.state.global_step, self._batch, len(self._prompts), self.args.seed)
        rows = rows[self.accelerator.process_index * mine :][:mine]
        parts = []
        for some in chunks(rows, self.args.per_device_train_batch_size):
            with self.accelerator.autocast():
                prompts = [self._prompts[row] for row in some]
                parts.append(self._sampler(self._critic.policy, some, prompts, self.args.device))
        return joined(parts)

    @torch.no_grad()
    def _experience(self, answers: Answers) -> tuple[Experience, dict[str, float]]:
        """Score the answers and estimate the advantage of each token; also what the log tells of them."""
        args, total = self.args, self._learner.total
        scores = torch.tensor(self._score(answers.rows, answers.texts), device=args.device)
        ended = torch.tensor(answers.ended, device=args.device).float()
        now = self._learner.evaluate(answers)
        with self._reference.in_place():
            reference = self._learner.evaluate(answers).logprobs
        rated = scores - (args.missing_eos_penalty or 0.0) * (1 - ended)
        rewards = token_rewards(rated, now.logprobs, reference, now.mask, self._kl_coef)
        if args.whiten_rewards:
            rewards = whitened(rewards, now.mask, total, shift=False)
        advantages, returns = generalized_advantages(rewards, now.values, now.mask, args.gamma, args.lam)
        advantages = whitened(advantages, now.mask, total)
        told = self._told(scores, (now.logprobs - reference).sum(dim=1), ended, now)
        if args.kl_target is not None:
            self._kl_coef = adapted(self._kl_coef, told["kl"], args.kl_target, self._batch, args.horizon)
        return Experience(answers, now.logprobs, now.values, advantages, returns), told

    def _told(self, scores: Tensor, kl: Tensor, ended: Tensor, now: Tokens) -> dict[str, float]:
        """Means over the rollouts of all processes; `kl` in nats a rollout, `entropy` in nats a token."""
        sums = (scores.sum(), scores.square().sum(), kl.sum(), ended.sum(), now.entropy.sum(), now.mask.sum())
        whole = self._learner.total(torch.stack([one.float() for one in sums]))
        score, square, divergence, ends, entropy, tokens = whole.tolist()
        count = self._batch
        return {
            "reward": score / count,
            "reward_std": math.sqrt(max(square / count - (score / count) ** 2, 0.0)),
            "kl": divergence / count,
            "kl_coef": self._kl_coef,
            "entropy": entropy / tokens,
            "ended": ends / count,
            "answer_tokens": tokens / count,
            "tokens": tokens,
        }

    def _after_updates(self) -> None:
        self.control = self.callback_handler.on_optimizer_step(self.args, self.state, self.control)

    def _end_step(self) -> None:
        before = math.floor(self.state.epoch or 0)
        self.state.global_step += 1
        self.state.epoch = self.state.global_step * self._batch / len(self._prompts)
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        last = self.state.global_step >= self.state.max_steps
        if last or math.floor(self.state.epoch) > before:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        self._log_and_save(log=self.control.should_log or last, save=self.control.should_save)

    def _save_abandoned(self) -> None:
        """End with a checkpoint of the last whole step, unless there is one or nothing was learned yet."""
        self.control.should_training_stop = True
        folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
        if self.state.global_step and not folder.exists():
            self._log_and_save(log=True, save=True)

    def _log_and_save(self, *, log: bool, save: bool) -> None:
        if log and self._since_log:
            lines, self._since_log = self._since_log, []
            means = {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}
            self.log(means | {"learning_rate": lines[-1]["learning_rate"]})
        if save:
            self._save_checkpoint(self._critic.policy, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
