"""Scores of earlier stages' items against the reference that each item carries."""

from __future__ import annotations

from collections.abc import Mapping

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.evaluation import Evaluation

Items = list[dict[str, Json]]


class EvaluationExecutor:
    """`evaluation`: the share of items whose output equals the reference, a candidate at a time."""

    name = "evaluation"
    inline = True
    uses = frozenset({"evaluation.*"})
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Compare the candidates row by row. Raises ExecutorError when they do not have the same rows."""
        evaluation = ctx.spec.evaluation
        if evaluation is None:
            raise ExecutorError("spec.evaluation is missing.", "Give candidates: {name: ${stage.result.items}}.")
        candidates = {name: _items(name, value) for name, value in evaluation.candidates.items()}
        references = _references(candidates, evaluation.reference)
        rows = [_row(index, reference, candidates) for index, reference in enumerate(references)]
        exact = {name: sum(row["correct"][name] for row in rows) / len(rows) for name in candidates}
        baseline = _baseline(evaluation, candidates)
        difference = {name: score - exact[baseline] for name, score in exact.items() if name != baseline}
        ctx.progress.update(len(rows), len(rows), "rows")
        return Result(
            payload={
                "ok": True,
                "metrics": {"exact_match": exact},
                "baseline": baseline,
                "difference": {"exact_match": difference},
                "rows": rows,
            },
            metrics={f"exact_match/{name}": score for name, score in exact.items()}
            | {f"exact_match_difference/{name}": gain for name, gain in difference.items()},
        )


def _items(name: str, value: list[Json] | str) -> Items:
    at = f"evaluation.candidates.{name}"
    if isinstance(value, str) or not all(isinstance(item, Mapping) and "output" in item for item in value):
        raise ExecutorError(
            f"{at} is {value!r:.60}, not a list of items with an output.", "Write ${stage.result.items}."
        )
    if not value:
        raise ExecutorError(f"{at} has no items, so there is nothing to compare.", "Check the data of that stage.")
    return [dict(item) for item in value]


def _references(candidates: Mapping[str, Items], where: str) -> list[str]:
    """The reference of every row, the same in all candidates."""
    lengths = {name: len(items) for name, items in candidates.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ExecutorError(f"The candidates do not have the same rows: {counts}.", "Let them read the same data.")
    if not lengths:
        raise ExecutorError("evaluation.candidates names none.", "Give at least one candidate.")
    per_candidate = {
        name: [_lookup(item, where, f"{name}[{index}]") for index, item in enumerate(items)]
        for name, items in candidates.items()
    }
    first, *others = per_candidate
    for other in others:
        for index, (one, two) in enumerate(zip(per_candidate[first], per_candidate[other], strict=True)):
            if one != two:
                raise ExecutorError(
                    f"Row {index} has reference {one!r:.60} in {first} and {two!r:.60} in {other}.",
                    "Let the candidates read the same data in the same order.",
                )
    return per_candidate[first]


def _lookup(item: Mapping[str, Json], where: str, at: str) -> str:
    value: Json = item
    for step in where.removeprefix("item.").split("."):
        if not isinstance(value, Mapping) or step not in value:
            known = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)
            raise ExecutorError(
                f"evaluation.reference {where!r}: item {at} has no {step!r}; it has {known or 'nothing'}.",
                "Keep the reference in the items: data.metadata_columns or data.items_metadata.",
            )
        value = value[step]
    return str(value)


def _row(index: int, reference: str, candidates: Mapping[str, Items]) -> dict[str, Json]:
    outputs = {name: str(items[index]["output"]) for name, items in candidates.items()}
    correct = {name: output.strip() == reference.strip() for name, output in outputs.items()}
    return {"index": index, "reference": reference, "outputs": outputs, "correct": correct}


def _baseline(evaluation: Evaluation, candidates: Mapping[str, Items]) -> str:
    baseline = evaluation.baseline or next(iter(candidates))
    if baseline not in candidates:
        raise ExecutorError(
            f"evaluation.baseline is {baseline!r}, which is no candidate.", f"Candidates: {', '.join(candidates)}."
        )
    return baseline
