"""The whole typed `spec` of one stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mloc_dagster.spec.agent import Agent
from mloc_dagster.spec.base import Json, Section, also
from mloc_dagster.spec.data import Data, Preference
from mloc_dagster.spec.evaluation import Evaluation
from mloc_dagster.spec.inference import Inference, Postprocess
from mloc_dagster.spec.model import Checkpoint, Lora, Model, RewardModel
from mloc_dagster.spec.output import Output
from mloc_dagster.spec.resources import Parallel, Resources, Retry
from mloc_dagster.spec.retrieval import Rag
from mloc_dagster.spec.serve import Serve
from mloc_dagster.spec.training import Generation, Training
from mloc_dagster.spec.workflow import Slo

Seconds = Annotated[float, Field(gt=0)]


class StageSpec(Section):
    """Everything one stage may say, after stage merge and dialects."""

    task_type: Annotated[str, Field(min_length=1), also("taskType")]
    depends_on: Annotated[list[str], also("dependsOn", "dependencies")] = []
    resources: Resources = Resources()
    """Hardware that the stage needs."""
    parallel: Parallel = Parallel()
    """Fan-out over rows."""
    retry: Retry = Retry()
    """What happens after a failure."""
    enforce_cpu: Annotated[bool, also("enforceCpu")] = False
    """Run the Transformers engine on the CPU."""
    slo_seconds: Annotated[float | None, also("sloSeconds")] = None
    """Seconds that the stage should take; a breach is only reported."""
    deadline_seconds: Annotated[float | None, also("deadlineSeconds")] = None
    """The same, looked at last."""
    slo: Slo = Slo()
    """Service level."""
    latency: Slo = Slo()
    """Service level."""
    runtime: Slo = Slo()
    """Service level."""
    timeout_seconds: Annotated[Seconds | None, also("timeoutSeconds")] = None
    """Seconds after which the stage is ended."""
    mirror: str | None = None
    """Where hub ids are looked up first: file:///… or s3://…"""
    model: Model = Model()
    data: Data = Data()
    query: Json = None
    """A prompt, or several."""
    task: Json = None
    """A prompt, or several."""
    inference: Inference = Inference()
    postprocess: Postprocess = Postprocess()
    training: Training = Training()
    lora: Lora | None = None
    """LoRA settings."""
    generation: Generation = Generation()
    reward_model: RewardModel | None = None
    """What scores a generated text."""
    checkpoint: Checkpoint = Checkpoint()
    rag: Rag = Rag()
    agent: Agent = Agent()
    evaluation: Evaluation | None = None
    """What is scored against what."""
    serve: Serve = Serve()
    echo: Json = None
    """What an echo stage returns."""
    output: Output = Output()
    plugin: dict[str, Json] = {}
    """Keys of a task type that another package brings."""

    def slo_limit(self) -> float | None:
        """Seconds of the first positive service level that the stage gives."""
        given = (self.slo_seconds, self.slo.seconds, self.latency.seconds, self.runtime.seconds, self.deadline_seconds)
        return next((seconds for seconds in given if seconds is not None and seconds > 0), None)


__all__ = ["Preference", "StageSpec"]
