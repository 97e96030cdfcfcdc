"""Candidates: items of earlier stages, scored row by row against references, rewards or preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from executors.evaluation.rewards import Answered, rewards_of, share_won
from executors.evaluation.rows import kept_rows, mean, rows_digest
from executors.evaluation.text_metrics import TEXT_METRICS, best
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.evaluation import Evaluation

Items = list[dict[str, Json]]
Scores = dict[str, dict[str, list[float]]]
"""Metric → candidate → score of each row."""
_TIE = "tie"
_OUTPUTS = frozenset({"output", "answer"})


@dataclass(frozen=True)
class Compared:
    """The candidates' items, and the references that the rows have in common."""

    items: Mapping[str, Items]
    baseline: str
    references: tuple[tuple[str, ...], ...] | None
    """Right answers of each row; None when no metric reads them."""

    @property
    def rows(self) -> int:
        """Number of rows, the same for all."""
        return len(next(iter(self.items.values())))


def score_candidates(ctx: TaskContext, evaluation: Evaluation) -> Result:
    """Compare the candidates row by row. Raises ExecutorError when they do not have the same rows."""
    compared = _compared(evaluation)
    scores = _scores(ctx, evaluation, compared)
    metrics = {
        metric: {name: mean(metric, values) for name, values in by_name.items()} for metric, by_name in scores.items()
    }
    difference = {
        metric: _differences(by_name, compared.baseline)
        for metric, by_name in metrics.items()
        if compared.baseline in by_name
    }
    rows = [_row(index, compared, scores) for index in range(compared.rows)]
    ctx.progress.update(len(rows), len(rows), "rows")
    first = next(iter(compared.items.values()))
    return Result(
        payload={
            "ok": True, "metrics": metrics, "baseline": compared.baseline, "difference": difference,
            **kept_rows(ctx, rows),
        },
        metrics={f"{metric}/{name}": score for metric, by_name in metrics.items() for name, score in by_name.items()}
        | {f"{metric}_difference/{name}": gain for metric, gains in difference.items() for name, gain in gains.items()},
        metadata={"rows_digest": rows_digest([[item.get("prompt") for item in first], compared.references])},
    )  # fmt: skip


def _compared(evaluation: Evaluation) -> Compared:
    items = {name: _items(name, value) for name, value in (evaluation.candidates or {}).items()}
    if not items:
        raise ExecutorError("evaluation.candidates names none.", "Give at least one candidate.")
    lengths = {name: len(found) for name, found in items.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ExecutorError(f"The candidates do not have the same rows: {counts}.", "Let them read the same data.")
    baseline = evaluation.baseline or next(iter(items))
    if baseline not in items:
        raise ExecutorError(
            f"evaluation.baseline is {baseline!r}, which is no candidate.", f"Candidates: {', '.join(items)}."
        )
    _check_prompts(items)
    needed = TEXT_METRICS.keys() & set(evaluation.metrics)
    return Compared(items, baseline, _references(items, evaluation.reference) if needed else None)


def _items(name: str, value: list[Json] | str) -> Items:
    at = f"evaluation.candidates.{name}"
    if isinstance(value, str) or not all(isinstance(item, Mapping) and item.keys() & _OUTPUTS for item in value):
        raise ExecutorError(
            f"{at} is {value!r:.60}, not a list of items with an output.",
            "Write ${stage.result.items}, or ${stage.result.queries} of a rag_inference stage.",
        )
    if not value:
        raise ExecutorError(f"{at} has no items, so there is nothing to compare.", "Check the data of that stage.")
    return [_named_as_items({**item}) for item in value]


def _named_as_items(item: dict[str, Json]) -> dict[str, Json]:
    """A query with its answer (rag_inference) has the names of an item of inference."""
    if "output" in item:
        return item
    return {"prompt": item.get("query"), "output": item["answer"], **item}


def _check_prompts(items: Mapping[str, Items]) -> None:
    """Raise ExecutorError where two candidates answer different prompts in the same row."""
    first, *others = items
    for other in others:
        for index, (one, two) in enumerate(zip(items[first], items[other], strict=True)):
            if "prompt" in one and "prompt" in two and one["prompt"] != two["prompt"]:
                raise ExecutorError(
                    f"Row {index} has prompt {one['prompt']!r:.60} in {first} and {two['prompt']!r:.60} in {other}.",
                    "Let the candidates read the same data in the same order.",
                )


def _references(items: Mapping[str, Items], where: str) -> tuple[tuple[str, ...], ...]:
    """The right answers of every row, the same in all candidates."""
    found = {
        name: [_lookup("reference", item, where, f"{name}[{index}]") for index, item in enumerate(given)]
        for name, given in items.items()
    }
    first, *others = found
    for other in others:
        for index, (one, two) in enumerate(zip(found[first], found[other], strict=True)):
            if one != two:
                raise ExecutorError(
                    f"Row {index} has reference {one!r:.60} in {first} and {two!r:.60} in {other}.",
                    "Let the candidates read the same data in the same order.",
                )
    return tuple(_answers(value, where, f"{first}[{index}]") for index, value in enumerate(found[first]))


def _answers(value: Json, where: str, at: str) -> tuple[str, ...]:
    """One right answer, or several of which the best counts."""
    if value is None or value == []:
        raise ExecutorError(
            f"evaluation.reference {where!r}: item {at} has no right answer ({value!r}).", "Fill or drop the row."
        )
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _lookup(key: str, item: Mapping[str, Json], where: str, at: str) -> Json:
    value: Json = item
    for step in where.removeprefix("item.").split("."):
        if not isinstance(value, Mapping) or step not in value:
            known = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)
            raise ExecutorError(
                f"evaluation.{key} {where!r}: item {at} has no {step!r}; it has {known or 'nothing'}.",
                f"Keep the {key} in the items: data.metadata_columns or data.items_metadata.",
            )
        value = value[step]
    return value


def _scores(ctx: TaskContext, evaluation: Evaluation, compared: Compared) -> Scores:
    asked = dict.fromkeys(evaluation.metrics)
    scores: Scores = {metric: _by_reference(metric, compared) for metric in asked if metric in TEXT_METRICS}
    by_reward = "reward" in asked or ("win_rate" in asked and evaluation.preference is None)
    rewards = {name: _rewards(ctx, name, items) for name, items in compared.items.items()} if by_reward else {}
    if "reward" in asked:
        scores["reward"] = rewards
    if "win_rate" in asked and evaluation.preference is not None:
        scores["win_rate"] = _preferred(evaluation.preference, compared)
    elif "win_rate" in asked:
        others = (name for name in rewards if name != compared.baseline)
        scores["win_rate"] = {name: share_won(rewards[name], rewards[compared.baseline]) for name in others}
    return scores


def _by_reference(metric: str, compared: Compared) -> dict[str, list[float]]:
    references = compared.references or ()
    return {
        name: [best(metric, str(item["output"]), right) for item, right in zip(items, references, strict=True)]
        for name, items in compared.items.items()
    }


def _rewards(ctx: TaskContext, name: str, items: Items) -> list[float]:
    for index, item in enumerate(items):
        if "prompt" not in item:
            raise ExecutorError(
                f"evaluation.candidates.{name}[{index}] has no prompt, which a reward needs.",
                "Write ${stage.result.items} of an inference stage.",
            )
    return rewards_of(
        ctx, [Answered(item["prompt"], str(item["output"]), dict(item.get("metadata") or {})) for item in items]
    )


def _preferred(where: str, compared: Compared) -> dict[str, list[float]]:
    """1 for each row in which the candidate is preferred to the baseline, 0.5 for a tie."""
    (name,) = (name for name in compared.items if name != compared.baseline)
    worth = {name: 1.0, _TIE: 0.5, compared.baseline: 0.0}
    won = []
    for index, item in enumerate(compared.items[name]):
        value = _lookup("preference", item, where, f"{name}[{index}]")
        if value not in worth:
            raise ExecutorError(
                f"evaluation.preference {where!r}: item {name}[{index}] prefers {value!r}.",
                f"One of {', '.join(worth)}.",
            )
        won.append(worth[value])
    return {name: won}


def _differences(scores: Mapping[str, float], baseline: str) -> dict[str, float]:
    return {name: score - scores[baseline] for name, score in scores.items() if name != baseline}


def _row(index: int, compared: Compared, scores: Scores) -> dict[str, Json]:
    row: dict[str, Json] = {"index": index}
    if compared.references is not None:
        row["reference"] = _one_or_all(compared.references[index])
    row["outputs"] = {name: str(items[index]["output"]) for name, items in compared.items.items()}
    if "exact_match" in scores:
        row["correct"] = {name: values[index] == 1.0 for name, values in scores["exact_match"].items()}
    others = {metric: by_name for metric, by_name in scores.items() if metric != "exact_match"}
    if others:
        row["scores"] = {
            metric: {name: values[index] for name, values in by_name.items()} for metric, by_name in others.items()
        }
    return row


def _one_or_all(answers: Sequence[str]) -> Json:
    return answers[0] if len(answers) == 1 else list(answers)
