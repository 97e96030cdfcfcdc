"""Executors by task type: the ones that come with MLOC and those of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint

from executors.base import Executor, ExecutorError
from executors.offered import entry_points

GROUP = "mloc.executors"
BUILT_IN: Mapping[str, str] = {
    "agent": "executors.agent:AgentExecutor",
    "agent_inference": "executors.agent:AgentInferenceExecutor",
    "echo": "executors.echo:EchoExecutor",
    "evaluation": "executors.evaluation:EvaluationExecutor",
    "inference": "executors.inference:InferenceExecutor",
    "dpo": "executors.training.alignment:DpoExecutor",
    "grpo": "executors.training.alignment:GrpoExecutor",
    "lora_sft": "executors.training.sft:LoraSftExecutor",
    "ppo": "executors.training.ppo:PpoExecutor",
    "rag": "executors.rag.retrieval:RagExecutor",
    "rag_indexing": "executors.rag.indexing:IndexingExecutor",
    "rag_inference": "executors.rag.answering:AnsweringExecutor",
    "retrieval": "executors.rag.retrieval:RetrievalExecutor",
    "reward": "executors.training.alignment:RewardExecutor",
    "serve": "executors.serving.stage:ServeExecutor",
    "sft": "executors.training.sft:SftExecutor",
}
_EXTRAS: dict[str, str] = {"inference": "inference", "evaluation": "inference", "serve": "inference"}
_EXTRAS |= dict.fromkeys(("sft", "lora_sft", "reward", "dpo", "grpo", "ppo"), "training")
_EXTRAS |= dict.fromkeys(("rag", "rag_indexing", "rag_inference", "retrieval"), "rag")
_EXTRAS |= dict.fromkeys(("agent", "agent_inference"), "agent")


def names() -> tuple[str, ...]:
    """Task types that can be executed here, sorted."""
    return tuple(sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))}))


def find(task_type: str) -> type[Executor]:
    """Return the executor class of a task type.

    The classes that come with MLOC import no heavy library before they run. Raises ExecutorError when there is none,
    when a library that it needs is missing, or when two packages offer the same name.
    """
    loader = _loader(task_type)
    try:
        return loader()
    except ImportError as error:
        raise missing_library(error, task_type) from error


def missing_library(error: ImportError, task_type: str) -> ExecutorError:
    """Explain an import that failed, with the command that mends it."""
    library, extra = error.name or str(error), _EXTRAS.get(task_type)
    way_out = f"pip install 'mloc-dagster[{extra}]'" if extra else f"pip install {library}"
    return ExecutorError(f"{library} cannot be imported ({error}), so this stage cannot run here.", f"Run: {way_out}")


def _loader(task_type: str) -> Callable[[], type[Executor]]:
    offered = _offered(task_type)
    if len(offered) > 1:
        places = ", ".join(sorted(point.value for point in offered))
        raise ExecutorError(
            f"taskType {task_type!r} is offered by more than one package: {places}.", "Uninstall all but one of them."
        )
    if task_type in BUILT_IN:
        return lambda: _load(BUILT_IN[task_type])
    if offered:
        return offered[0].load
    near = get_close_matches(task_type, names(), n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ExecutorError(
        f"taskType {task_type!r} has no executor here.{guess}", f"Task types that can run: {', '.join(names())}."
    )


def _offered(task_type: str) -> list[EntryPoint]:
    built_in = BUILT_IN.get(task_type)
    found = {point.value: point for point in entry_points(group=GROUP, name=task_type)}
    others = [point for value, point in found.items() if value != built_in]
    return others + ([EntryPoint(task_type, built_in, GROUP)] if built_in else [])


def _load(place: str) -> type[Executor]:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
