"""What both engines have in common: the job of generating for token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from executors.base import ExecutorError
from executors.inference.adapters import RuntimeAdapter
from mloc_dagster.spec.inference import Inference


@dataclass(frozen=True)
class Completion:
    """One generated text; `finish_reason` is `stop` or `length`."""

    text: str
    finish_reason: str
    tokens: int


Finished = Callable[[Mapping[int, list[Completion]]], None]
"""Called with rows that have just finished, each once; raises Interrupted when the work must end."""


@dataclass(frozen=True)
class Draft:
    """One text to generate: token ids and seed of its prompt, which of the prompt's texts it is, and its limit."""

    prompt: list[int]
    seed: int | None
    draw: int
    max_tokens: int


@dataclass(frozen=True)
class Weights:
    """What an engine loads."""

    model: Path
    adapters: tuple[RuntimeAdapter, ...] = ()
    trust_remote_code: bool = False
    warnings: tuple[str, ...] = ()


class Engine(Protocol):
    """A loaded model that generates, in this process or behind an endpoint."""

    name: str
    tokenizer: Any
    context: int | None
    """Longest prompt and answer together, in tokens."""
    warnings: list[str]

    def generate(
        self, prompts: Mapping[int, list[int]], sampling: Sampling, finished: Finished
    ) -> dict[int, list[Completion]]:
        """Return `n` completions for each prompt; its key is the number of its row, from which its seed comes."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@dataclass(frozen=True)
class Sampling:
    """Sampling settings with one meaning for both engines; greedy ones carry no temperature."""

    max_tokens: int
    greedy: bool
    temperature: float
    top_p: float
    top_k: int
    """0 means all tokens."""
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    stop: tuple[str, ...]
    n: int
    seed: int | None

    def seed_of(self, row: int) -> int | None:
        """Each row has a seed of its own, so that a row's text does not depend on the batch that it is in."""
        return None if self.seed is None else self.seed + row


def sampling_of(inference: Inference) -> Sampling:
    """Return the settings. Greedy means `temperature: 0` or `do_sample: false`.

    Raises ExecutorError for greedy n > 1.
    """
    greedy = inference.temperature == 0 or inference.do_sample is False
    if greedy and inference.n > 1:
        raise ExecutorError(
            f"inference.n is {inference.n}, but greedy decoding always gives the same text.",
            "Set temperature above 0, or n: 1.",
        )
    stop = [inference.stop] if isinstance(inference.stop, str) else inference.stop
    return Sampling(
        max_tokens=inference.max_tokens,
        greedy=greedy,
        temperature=inference.temperature,
        top_p=inference.top_p,
        top_k=max(inference.top_k or 0, 0),
        repetition_penalty=inference.repetition_penalty,
        presence_penalty=inference.presence_penalty,
        frequency_penalty=inference.frequency_penalty,
        stop=tuple(text for text in stop if text),
        n=inference.n,
        seed=inference.seed,
    )
