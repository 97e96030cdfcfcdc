"""Generation with Transformers: batches with left padding, on a CPU or a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from executors.base import ExecutorError
from executors.inference.adapters import RuntimeAdapter, does_not_fit
from executors.inference.engine import Completion, Draft, Finished, Sampling, Weights
from executors.inference.sampling import Penalties, SeededSampling
from mloc_dagster.spec.model import Transformers

Watch = Callable[[list[list[int]]], list[bool]]
"""Gets the new token ids of each row after every step, and says which rows are to end."""


class TransformersEngine:
    """`AutoModelForCausalLM` with any number of runtime adapters, whose effects add up."""

    name = "transformers"

    def __init__(self, weights: Weights, options: Transformers, *, dtype: str, on_gpu: bool) -> None:
        self.warnings: list[str] = []
        self.batch_size = options.batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(weights.model, trust_remote_code=weights.trust_remote_code)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        arguments = self._arguments(options, on_gpu) | {"dtype": dtype, "trust_remote_code": weights.trust_remote_code}
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(weights.model, **arguments)
        except (OSError, ValueError) as error:
            raise ExecutorError(
                f"The model {weights.model} cannot be loaded: {str(error).splitlines()[0]}",
                "Remote code runs only if trust_remote_code is set and the deployment allows it.",
            ) from error
        if on_gpu and "device_map" not in arguments:
            model = model.to("cuda")
        self._model = _with_adapters(model, weights).eval()
        self.context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def generate(
        self, prompts: Mapping[int, list[int]], sampling: Sampling, finished: Finished
    ) -> dict[int, list[Completion]]:
        """Return `n` completions for each row. With a seed, a row's text does not depend on its batch."""
        drafts = [
            (row, Draft(prompt, sampling.seed_of(row), draw, sampling.max_tokens))
            for row, prompt in prompts.items()
            for draw in range(sampling.n)
        ]
        found: dict[int, list[Completion]] = {row: [] for row in prompts}
        for start in range(0, len(drafts), self.batch_size):
            batch = drafts[start : start + self.batch_size]
            texts = self.batch([draft for _, draft in batch], sampling)
            for (row, _), tokens in zip(batch, texts, strict=True):
                found[row].append(self.completion(tokens, sampling.stop))
            finished({row: found[row] for row, _ in batch if len(found[row]) == sampling.n})
        return found

    def add_adapter(self, name: str, adapter: RuntimeAdapter) -> None:
        """Load an adapter that `applied` can name; raises ExecutorError when it does not fit."""
        self._model = _with_adapter(self._model, name, adapter)
        self._model.eval()

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter."""
        self._model.delete_adapter(name)

    @contextmanager
    def applied(self, names: Sequence[str]) -> Iterator[None]:
        """Generate with these adapters, or with none, while the block runs."""
        if names:
            self._model.base_model.set_adapter(list(names))
            yield
        elif hasattr(self._model, "disable_adapter"):
            with self._model.disable_adapter():
                yield
        else:
            yield

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return self._model.config.get_text_config().vocab_size

    @torch.inference_mode()
    def score(self, texts: Sequence[tuple[list[int], int]], progress: Callable[[int], None]) -> list[float]:
        """Return the log-probability (nats) of each sequence of token ids from the given place (1 or later) on."""
        found: list[float] = []
        for first in range(0, len(texts), self.batch_size):
            batch = texts[first : first + self.batch_size]
            ids = pad_sequence([torch.tensor(tokens) for tokens, _ in batch], batch_first=True)
            ids = ids.to(self._model.device)
            places = torch.arange(ids.shape[1], device=ids.device)
            lengths = torch.tensor([len(tokens) for tokens, _ in batch], device=ids.device)[:, None]
            starts = torch.tensor([start for _, start in batch], device=ids.device)[:, None]
            logits = self._model(input_ids=ids, attention_mask=(places < lengths).long()).logits[:, :-1].float()
            told = -cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            counted = (places[1:] >= starts) & (places[1:] < lengths)
            found += (told * counted).sum(dim=1).tolist()
            progress(first + len(batch))
        return found

    def close(self) -> None:
        """Free the model's memory."""
        del self._model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def batch(
        self,
        drafts: Sequence[Draft],
        sampling: Sampling,
        watch: Watch | None = None,
        mask: LogitsProcessor | None = None,
    ) -> list[list[int]]:
        """Return the new token ids of each draft, generated together.

        `watch` sees the ids of each step, `mask` rules tokens out before one is drawn.
        """
        prompts = [draft.prompt for draft in drafts]
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        pads = [width - len(prompt) for prompt in prompts]
        ids = torch.tensor([[pad] * count + prompt for count, prompt in zip(pads, prompts, strict=True)])
        seen = torch.tensor([[0] * count + [1] * len(prompt) for count, prompt in zip(pads, prompts, strict=True)])
        ids, seen = ids.to(self._model.device), seen.to(self._model.device)
        limits = list(map(self.limit, drafts))
        criteria: list[StoppingCriteria] = [_StopTexts(self.tokenizer, sampling.stop, width)]
        output = self._model.generate(
            input_ids=ids,
            attention_mask=seen,
            generation_config=GenerationConfig(
                max_new_tokens=max(limits),
                do_sample=False,
                eos_token_id=self.ends or None,
                pad_token_id=pad,
                bos_token_id=self.tokenizer.bos_token_id,
            ),
            logits_processor=_processors(sampling, seen, width, drafts, mask),
            stopping_criteria=StoppingCriteriaList(criteria + ([_Watched(watch, width)] if watch else [])),
        )
        new = zip(output[:, width:].tolist(), limits, strict=True)
        return [self._without_padding(tokens[:limit]) for tokens, limit in new]

    def limit(self, draft: Draft) -> int:
        """Tokens that a draft may have: its own limit, or what the context leaves."""
        return min(draft.max_tokens, (self.context or 1 << 30) - len(draft.prompt))

    def completion(self, tokens: Sequence[int], stop: Sequence[str]) -> Completion:
        """The text of generated token ids, which ends before an end token and before any of the stop texts."""
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        kept = list(tokens if end is None else tokens[:end])
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cuts = [place for mark in stop if (place := text.find(mark)) >= 0]
        if cuts:
            return Completion(text[: min(cuts)], "stop", len(kept))
        return Completion(text, "length" if end is None else "stop", len(kept) + (end is not None))

    def _without_padding(self, tokens: list[int]) -> list[int]:
        """A row that ended before its batch is filled up; padding that is an end token is cut with the text."""
        pad = self.tokenizer.pad_token_id
        while pad not in self.ends and tokens and tokens[-1] == pad:
            tokens.pop()
        return tokens

    @cached_property
    def ends(self) -> list[int]:
        """Tokens that end a text: the tokenizer's and those of the model's generation config."""
        configured = self._model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        return sorted({end for end in [*ends, self.tokenizer.eos_token_id] if end is not None})

    def _arguments(self, options: Transformers, on_gpu: bool) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if options.device_map is not None and on_gpu:
            arguments["device_map"] = options.device_map
        if options.low_cpu_mem_usage is not None:
            arguments["low_cpu_mem_usage"] = options.low_cpu_mem_usage
        attention = "flash_attention_2" if options.use_flash_attention_2 else options.attn_implementation
        if attention and (on_gpu or "flash" not in attention):
            arguments["attn_implementation"] = attention
        elif attention:
            self.warnings.append(f"{attention} needs a GPU; the default attention was used on the CPU")
        if (options.load_in_4bit or options.load_in_8bit) and not on_gpu:
            self.warnings.append("load_in_4bit and load_in_8bit need a GPU; the model was loaded without on the CPU")
        elif options.load_in_4bit or options.load_in_8bit:
            from transformers import BitsAndBytesConfig

            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=options.load_in_4bit, load_in_8bit=options.load_in_8bit
            )
            arguments.setdefault("device_map", {"": 0})
        return arguments


def _with_adapters(model: Any, weights: Weights) -> Any:
    names = [f"adapter_{number}" for number in range(len(weights.adapters))]
    for name, adapter in zip(names, weights.adapters, strict=True):
        model = _with_adapter(model, name, adapter)
    if names:
        model.base_model.set_adapter(names)
    return model


def _with_adapter(model: Any, name: str, adapter: RuntimeAdapter) -> Any:
    from peft import PeftModel

    try:
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, str(adapter.folder), adapter_name=name)
        model.load_adapter(str(adapter.folder), adapter_name=name)
    except (RuntimeError, ValueError, KeyError) as error:
        raise does_not_fit(adapter, Path(model.config._name_or_path), error) from error
    return model


def _processors(
    sampling: Sampling, seen: torch.Tensor, width: int, drafts: Sequence[Draft], mask: LogitsProcessor | None
) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1.0, 0.0, 0.0):
        processors.append(Penalties(sampling, seen, width))
    if mask is not None:
        processors.append(mask)
    if not sampling.greedy:
        processors.append(SeededSampling(sampling, drafts))
    return processors


class _Watched(StoppingCriteria):
    """Shows each step to somebody who may end rows."""

    def __init__(self, watch: Watch, width: int) -> None:
        self._watch = watch
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """A flag for each row."""
        return torch.tensor(self._watch(input_ids[:, self._width :].tolist()), device=input_ids.device)


class _StopTexts(StoppingCriteria):
    """Ends a row once one of the texts occurs in what it generated."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], width: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._width = width
        self._tail = max(map(len, stop), default=0) + 8
        """A token is at least one character, but some are part of one or none."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """A flag for each row."""
        if not self._stop:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        tails = input_ids[:, self._width :][:, -self._tail :].tolist()
        texts = [self._tokenizer.decode(tail, skip_special_tokens=True) for tail in tails]
        return torch.tensor([any(mark in text for mark in self._stop) for text in texts], device=input_ids.device)
