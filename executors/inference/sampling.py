"""Penalties and seeded sampling for Transformers, with the meaning that vLLM gives the same keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from executors.inference.engine import Draft, Sampling


class Penalties(LogitsProcessor):
    """Repetition (prompt and output), presence and frequency (output) penalties, blind to padding.

    As in vLLM's `apply_penalties`: repetition divides positive and multiplies negative logits, the others subtract.
    """

    def __init__(self, sampling: Sampling, mask: torch.Tensor, width: int) -> None:
        self._sampling = sampling
        self._mask = mask.bool()
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Penalise logits of shape (rows, vocabulary) given ids of shape (rows, width + generated)."""
        counts = torch.zeros_like(scores).scatter_add_(
            1, input_ids[:, self._width :], torch.ones_like(input_ids[:, self._width :], dtype=scores.dtype)
        )
        prompt = torch.zeros_like(scores).scatter_add_(1, input_ids[:, : self._width], self._mask.to(scores.dtype))
        factor = self._sampling.repetition_penalty
        seen = (counts + prompt) > 0
        scores = torch.where(seen, torch.where(scores > 0, scores / factor, scores * factor), scores)
        return scores - self._sampling.frequency_penalty * counts - self._sampling.presence_penalty * (counts > 0)


class SeededSampling(LogitsProcessor):
    """Draws each row's next token with the row's own generator: the argmax of what it returns is the sample.

    Gumbel-max (Gumbel 1954; Maddison et al. 2014): argmax(logits + Gumbel noise) is distributed as softmax(logits).
    """

    def __init__(self, sampling: Sampling, drafts: Sequence[Draft]) -> None:
        self._warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generators = [_generator(draft.seed, draft.draw) for draft in drafts]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return warped logits plus noise, of shape (rows, vocabulary)."""
        for warp in self._warpers:
            scores = warp(input_ids, scores)
        uniform = torch.stack([torch.rand(scores.shape[1], generator=generator) for generator in self._generators])
        noise = -torch.log(-torch.log(uniform.clamp(min=1e-20, max=1 - 1e-7)))
        return scores.float() + noise.to(scores.device)


def _generator(seed: int | None, draw: int) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed((seed * 1_000_003 + draw) % (1 << 63))
    return generator
