"""Gradients from rollouts: what the policy says of each token, and passes over a batch of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from executors.training.ppo.losses import policy_loss, value_loss
from executors.training.ppo.rollout import Answers, batch_of, chunks
from executors.training.ppo.settings import PPOConfig


class Tokens(NamedTuple):
    """Log probability, value, entropy (nats, without gradient) and mask of each token; 0 at padding.

    Tensors of shape (answers, longest).
    """

    logprobs: Tensor
    values: Tensor
    entropy: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Experience:
    """Answers and what is learned from them; tensors of shape (answers, longest), as they were while sampling."""

    answers: Answers
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class Learner:
    """Holds the prepared model and optimizer. `temperature` is the one that answers are sampled at."""

    def __init__(
        self, args: PPOConfig, accelerator: Accelerator, model: Any, optimizer: Any, *, padding: int, temperature: float
    ) -> None:
        self._args, self._accelerator = args, accelerator
        self._model, self._optimizer = model, optimizer
        self._padding, self._temperature = padding, temperature

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._accelerator.reduce(value)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def evaluate(self, answers: Answers) -> Tokens:
        """All answers under the policy as it is."""
        longest = max(map(len, answers.tokens))
        parts = [self._tokens(answers, some) for some in chunks(range(len(answers)), self._at_once)]
        whole = (
            torch.cat([pad(part, (0, longest - part.shape[1])) for part in column])
            for column in zip(*parts, strict=True)
        )
        return Tokens(*whole)

    def learn(self, experience: Experience, after_updates: Callable[[], None]) -> dict[str, float]:
        """Pass over the rollouts, until the policy is too far from the one that sampled them.

        Returns means over the optimizer steps, and how many there were. `after_updates` is called once at the end,
        while the gradients of the last mini-batch are still there.
        """
        taken: list[dict[str, float]] = []
        limit, stopped = self._args.kl_limit, False
        for chosen in self._mini_batches(len(experience.answers)):
            self._optimizer.zero_grad()
            told = self._gradient(experience, chosen)
            if limit is not None and taken and told["approx_kl"] > limit:
                stopped = True
                break
            taken.append(told | {"grad_norm": self._clipped()})
            self._optimizer.step()
        after_updates()
        self._optimizer.zero_grad()
        return _means(taken) | {"updates": len(taken), "stopped_early": float(stopped)}

    def _mini_batches(self, rollouts: int) -> Iterator[list[int]]:
        """Each pass takes the rollouts in another order."""
        for _ in range(self._args.ppo_epochs):
            yield from chunks(torch.randperm(rollouts).tolist(), self._args.local_mini_batch)

    @property
    def _at_once(self) -> int:
        return self._args.per_device_train_batch_size

    def _tokens(self, answers: Answers, chosen: Sequence[int]) -> Tokens:
        batch = batch_of(answers, chosen, self._padding, self._args.device)
        logits, values = self._model(batch.input_ids, batch.attention_mask, batch.answer_ids.shape[1])
        logits, mask = logits / self._temperature, batch.answer_mask
        logprobs = selective_log_softmax(logits, batch.answer_ids)
        with torch.no_grad():
            entropy = entropy_from_logits(logits)
        return Tokens(logprobs * mask, values * mask, entropy * mask, mask)

    def _gradient(self, experience: Experience, chosen: Sequence[int]) -> dict[str, float]:
        """Add up the gradient of a mini-batch in parts that fit the device; means are over its tokens everywhere."""
        own = sum(len(experience.answers.tokens[one]) for one in chosen)
        tokens = self.total(torch.tensor(float(own), device=self._args.device))
        *first, last = chunks(chosen, self._at_once)
        sums = torch.zeros(5, device=self._args.device)
        with self._accelerator.no_sync(self._model):
            for part in first:
                sums += self._part(experience, part, tokens)
        sums += self._part(experience, last, tokens)
        policy, value, approx_kl, clipped, clipped_values = (self.total(sums) / tokens).tolist()
        return {
            "loss": policy + self._args.vf_coef * value,
            "loss/policy": policy,
            "loss/value": value,
            "approx_kl": approx_kl,
            "clip_fraction": clipped,
            "value_clip_fraction": clipped_values,
        }

    def _part(self, experience: Experience, chosen: Sequence[int], tokens: Tensor) -> Tensor:
        """Add the gradient of some rollouts; returns sums of both losses, the divergence and the clipped tokens."""
        args, rows = self._args, torch.tensor(chosen, device=self._args.device)
        now = self._tokens(experience.answers, chosen)
        held = (experience.logprobs, experience.values, experience.advantages, experience.returns)
        logprobs, values, advantages, returns = (one[rows, : now.mask.shape[1]] for one in held)
        policy = policy_loss(now.logprobs, logprobs, advantages, now.mask, args.cliprange)
        value = value_loss(now.values, values, returns, now.mask, args.cliprange_value)
        whole = policy.loss + args.vf_coef * value.loss
        # gradients of processes are averaged, the tokens are those of all
        self._accelerator.backward(whole * self._accelerator.num_processes / tokens)
        sums = (policy.loss, value.loss, policy.approx_kl, policy.clipped, value.clipped)
        return torch.stack([one.detach().float() for one in sums])

    def _clipped(self) -> float:
        """Clip the gradient to `max_grad_norm` (0: not at all); returns its norm before."""
        longest = self._args.max_grad_norm or math.inf
        return float(self._accelerator.clip_grad_norm_(self._model.parameters(), longest) or 0.0)


def _means(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}
