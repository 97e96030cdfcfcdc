"""An orchestrated agent: a planner writes steps, workers carry them out in turn, a reporter writes the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from executors.agent.loop import Answer, Part, run_loop
from executors.agent.tools.fault import ToolFault
from executors.agent.trace import ItemTrace
from executors.messages import Message
from mloc_dagster.spec.agent import Agent
from mloc_dagster.spec.base import Json

_PLANNER = (
    "You plan how a task is done by workers. Give the fewest steps that do it, in order, each with the worker that "
    "carries it out and all that this worker needs to know."
)
_REPORTER = "You write the answer to a task from what the workers found. Say plainly what they could not find out."
_ATTEMPTS = 2


class Step(BaseModel):
    """One step of a plan."""

    model_config = ConfigDict(extra="forbid")

    worker: str
    task: str = Field(min_length=1)


class Plan(BaseModel):
    """What the planner gives."""

    model_config = ConfigDict(extra="forbid")

    steps: list[Step] = Field(min_length=1)


@dataclass(frozen=True)
class Orchestra:
    """The parts of an orchestrated agent. The planner's model is held to `plan_schema`."""

    planner: Part
    workers: dict[str, Part]
    reporter: Part
    max_steps: int


def plan_schema(agent: Agent) -> dict[str, Json]:
    """Return the JSON schema of a plan for the agent's workers."""
    step = {
        "type": "object",
        "properties": {
            "worker": {"type": "string", "enum": [worker.name for worker in agent.workers]},
            "task": {"type": "string"},
        },
        "required": ["worker", "task"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"steps": {"type": "array", "items": step, "minItems": 1, "maxItems": agent.max_steps}},
        "required": ["steps"],
        "additionalProperties": False,
    }


def planner_of(agent: Agent, model: BaseChatModel) -> Part:
    """Return the planner, which is told the workers and what each can do."""
    workers = "\n".join(f"- {worker.name}: {worker.description or 'no description'}" for worker in agent.workers)
    told = agent.planner.instructions or _PLANNER
    form = 'Answer with JSON: {"steps": [{"worker": NAME, "task": TEXT}]}'
    return Part("planner", model, f"{told}\n\nWorkers:\n{workers}\n\nAt most {agent.max_steps} steps. {form}.")


def reporter_of(agent: Agent, model: BaseChatModel) -> Part:
    """Return the reporter."""
    return Part("reporter", model, agent.reporter.instructions or _REPORTER)


async def play(orchestra: Orchestra, messages: Sequence[Message], trace: ItemTrace) -> Answer:
    """Plan, work, report. A worker that comes to its limit is reported as unfinished.

    Raises ToolFault when the planner gives no plan that can be carried out.
    """
    found: list[str] = []
    for number, step in enumerate(await _planned(orchestra, messages, trace), start=1):
        earlier = "\n\n".join(found)
        text = f"{step.task}\n\nWhat was found before:\n{earlier}" if found else step.task
        answer = await run_loop(orchestra.workers[step.worker], [{"role": "user", "content": text}], trace)
        unfinished = " (unfinished: it came to its limit of model calls)" if answer.finish_reason != "stop" else ""
        found.append(f"Step {number}, {step.worker}: {step.task}{unfinished}\n{answer.output}")
    results = "\n\n".join(found)
    asked = {"role": "user", "content": f"The workers have found:\n\n{results}\n\nNow write the answer."}
    return await run_loop(orchestra.reporter, [*messages, asked], trace)


async def _planned(orchestra: Orchestra, messages: Sequence[Message], trace: ItemTrace) -> list[Step]:
    asked = list(messages)
    fault = ""
    for _ in range(_ATTEMPTS):
        answer = await run_loop(orchestra.planner, asked, trace)
        try:
            steps = Plan.model_validate_json(_json_of(answer.output)).steps
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            fault = f"{'.'.join(map(str, first['loc'])) or 'the plan'}: {first['msg']}"
        else:
            unknown = [step.worker for step in steps if step.worker not in orchestra.workers]
            if not unknown:
                return steps[: orchestra.max_steps]
            fault = f"{unknown[0]!r} is not a worker; there are {', '.join(orchestra.workers)}"
        told = f"This plan cannot be carried out: {fault}. Write it again."
        asked += [{"role": "assistant", "content": answer.output}, {"role": "user", "content": told}]
    raise ToolFault(f"The planner gave no plan that can be carried out: {fault}.")


def _json_of(text: str) -> str:
    """The JSON object in an answer that may have words around it."""
    first, last = text.find("{"), text.rfind("}")
    return text[first : last + 1] if 0 <= first < last else text
