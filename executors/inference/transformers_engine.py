"""Generation with Transformers: batches with left padding, on a CPU or a GPU."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from executors.base import ExecutorError
from executors.inference.adapters import does_not_fit
from executors.inference.engine import Completion, Progress, Sampling, Weights
from executors.inference.sampling import Penalties, SeededSampling
from mloc_dagster.spec.model import Transformers


class TransformersEngine:
    """`AutoModelForCausalLM` with any number of runtime adapters, whose effects add up."""

    name = "transformers"

    def __init__(self, weights: Weights, options: Transformers, *, dtype: str, on_gpu: bool) -> None:
        self.warnings: list[str] = []
        self._batch_size = options.batch_size
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

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress) -> list[list[Completion]]:
        """Return `n` completions for each prompt. With a seed, a row's text does not depend on its batch."""
        work = [(row, draw) for row in range(len(prompts)) for draw in range(sampling.n)]
        found: list[list[Completion]] = [[] for _ in prompts]
        for start in range(0, len(work), self._batch_size):
            batch = work[start : start + self._batch_size]
            texts = self._batch([prompts[row] for row, _ in batch], batch, sampling)
            for (row, _), completion in zip(batch, texts, strict=True):
                found[row].append(completion)
            progress((start + len(batch)) // sampling.n)
        return found

    @torch.inference_mode()
    def score(self, texts: Sequence[tuple[list[int], int]], progress: Progress) -> list[float]:
        """Return the log-probability (nats) of each sequence of token ids from the given place (1 or later) on."""
        found: list[float] = []
        for first in range(0, len(texts), self._batch_size):
            batch = texts[first : first + self._batch_size]
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
    def _batch(self, prompts: list[list[int]], places: list[tuple[int, int]], sampling: Sampling) -> list[Completion]:
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        pads = [width - len(prompt) for prompt in prompts]
        ids = torch.tensor([[pad] * count + prompt for count, prompt in zip(pads, prompts, strict=True)])
        mask = torch.tensor([[0] * count + [1] * len(prompt) for count, prompt in zip(pads, prompts, strict=True)])
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        limits = [min(sampling.max_tokens, (self.context or 1 << 30) - len(prompt)) for prompt in prompts]
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=max(limits),
                do_sample=False,
                eos_token_id=self._ends or None,
                pad_token_id=pad,
                bos_token_id=self.tokenizer.bos_token_id,
            ),
            logits_processor=_processors(sampling, mask, width, places),
            stopping_criteria=StoppingCriteriaList([_StopTexts(self.tokenizer, sampling.stop, width)]),
        )
        new = output[:, width:].tolist()
        return [self._completion(tokens[:limit], sampling.stop) for tokens, limit in zip(new, limits, strict=True)]

    @property
    def _ends(self) -> list[int]:
        """Tokens that end a text: the tokenizer's and those of the model's generation config."""
        configured = self._model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        return sorted({end for end in [*ends, self.tokenizer.eos_token_id] if end is not None})

    def _completion(self, tokens: list[int], stop: tuple[str, ...]) -> Completion:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        kept = tokens if end is None else tokens[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cuts = [place for mark in stop if (place := text.find(mark)) >= 0]
        if cuts:
            return Completion(text[: min(cuts)], "stop", len(kept))
        return Completion(text, "length" if end is None else "stop", len(kept) + (end is not None))

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
    if not weights.adapters:
        return model
    from peft import PeftModel

    for number, adapter in enumerate(weights.adapters):
        name = f"adapter_{number}"
        try:
            if number == 0:
                model = PeftModel.from_pretrained(model, str(adapter.folder), adapter_name=name)
            else:
                model.load_adapter(str(adapter.folder), adapter_name=name)
        except (RuntimeError, ValueError, KeyError) as error:
            raise does_not_fit(adapter, weights.model, error) from error
    model.base_model.set_adapter([f"adapter_{number}" for number in range(len(weights.adapters))])
    return model


def _processors(
    sampling: Sampling, mask: torch.Tensor, width: int, places: list[tuple[int, int]]
) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1.0, 0.0, 0.0):
        processors.append(Penalties(sampling, mask, width))
    if not sampling.greedy:
        processors.append(SeededSampling(sampling, places))
    return processors


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
