"""Which stages' results a stage reads, beyond waiting for them."""

from __future__ import annotations

from collections.abc import Iterator

from mloc_dagster.spec import references as refs
from mloc_dagster.spec.taskfile import Stage


def stages_read(stage: Stage) -> frozenset[str]:
    """Return the names that the stage's references, template columns, stage outputs and gate name.

    Names of other tasks (`spec.dependsOn`) are among them.
    """
    return frozenset(head for body in _bodies(stage) if (head := refs.head(body)))


def _bodies(stage: Stage) -> Iterator[str]:
    yield from (body for _, body in refs.find(stage.raw))
    data, evaluation = stage.spec.data, stage.spec.evaluation
    for column in data.template.columns if data.template else ():
        yield f"{column.node}.result" if column.node else (column.expr or "").strip()
    sources = data.input_sources
    for source in (sources.queries, sources.contexts, sources.initial_answers) if sources else ():
        output = source.stage_output if source else None
        if output:
            yield output if "." in output else f"{output}.result"
    if evaluation and evaluation.gate and evaluation.gate.stage:
        yield f"{evaluation.gate.stage}.result"
