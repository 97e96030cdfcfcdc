"""Checks of `spec.workflow_config`: what the final output names, and what the section says in vain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mloc_dagster.spec import references as refs
from mloc_dagster.spec.faults import Fault, listing, nearest, shown
from mloc_dagster.spec.tree import Mapping
from mloc_dagster.spec.typed import origin_at
from mloc_dagster.spec.workflow import WorkflowConfig


def faults(workflow: WorkflowConfig, tree: Mapping, stages: Sequence[str]) -> Iterator[Fault]:
    """Faults of names of the final output that are no stage, and of a path that leaves the results folder."""
    final = workflow.final_output
    if final is None:
        return
    named = [(("source",), final.source)] if final.source else []
    named += [(("include", index), name) for index, name in enumerate(final.include)]
    for path, name in named:
        place = origin_at(tree, ("final_output", *path))
        if place is None or (head := stage_of(name)) in stages:
            continue
        guess = nearest(head or name, list(stages))
        way_out = f"did you mean {guess}?" if guess else f"stages here: {listing(list(stages))}"
        yield Fault(*place.value, place.text, "names no stage of this file", shown(name), way_out)
    place = origin_at(tree, ("final_output", "path"))
    if place and final.path is not None and ".." in final.path.replace("\\", "/").split("/"):
        yield Fault(*place.value, place.text, "must stay inside the results folder", shown(final.path), "remove ..")


def stage_of(name: str) -> str | None:
    """The stage that `stage`, `stage.result.path` or `${stage.result.path}` is about; None for what cannot be read."""
    body = refs.whole(name) or name.strip()
    return body if "." not in body else refs.head(body)


def warnings(workflow: WorkflowConfig, tree: Mapping) -> Iterator[Fault]:
    """Warnings for what changes nothing."""
    place = origin_at(tree, ("shared_storage",))
    if place and workflow.shared_storage is not None:
        what = "is not used: stages hand over their results by reference"
        yield Fault(*place.key, place.text, what, "", "write ${stage.result.…} where another stage reads a file")
    for key in (workflow.final_output.model_extra or {}) if workflow.final_output else {}:
        place = origin_at(tree, ("final_output", key))
        if place:
            yield Fault(*place.key, place.text, "is not a key of final_output", "", "remove it")
    place = origin_at(tree, ("execution_mode",))
    if place and workflow.execution_mode == "parallel" and workflow.one_at_a_time:
        what = "does not hold beside failure_strategy: continue, which runs stages one at a time"
        yield Fault(*place.value, place.text, what, "parallel", "remove one of them")
