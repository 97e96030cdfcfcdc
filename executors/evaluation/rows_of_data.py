"""A model on rows of data: perplexity, rewards, and how often the better answer of a pair wins."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from executors.base import ExecutorError, Interrupted, Result
from executors.context import TaskContext
from executors.evaluation.rewards import Answered, rewards_of, share_won
from executors.evaluation.rows import kept_rows, mean, rows_digest
from executors.evaluation.tokens import Scored, answer_tokens, text_tokens
from executors.inference import load_transformers, weights_of
from executors.inference.transformers_engine import TransformersEngine
from executors.messages import Text
from executors.rows import Example, Pair, Preference, TrainingRows, examples, preferences, training_rows
from executors.tables import Row
from executors.weights import ADAPTER_FILE, digests
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.evaluation import REWARD_METRICS, Evaluation

_SHOWN = 200
"""Characters of a text that its row of scores shows."""


@dataclass
class Report:
    """Metrics so far, and what is told of each row."""

    metrics: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Json]] = field(default_factory=list)

    def add(self, metric: str, value: float, rows: Sequence[dict[str, Json]]) -> None:
        """Take a metric and its values row by row."""
        self.metrics[metric] = value
        for row, more in zip(self.rows, rows, strict=True):
            row |= more


def score_data(ctx: TaskContext, evaluation: Evaluation) -> Result:
    """Score the stage's model, or what `reward_model` names, on the stage's rows of data."""
    rows, asked = training_rows(ctx), set(evaluation.metrics)
    pairs = preferences(rows) if "win_rate" in asked else []
    texts = examples(rows) if asked - {"win_rate"} else []
    report = Report(rows=[{"index": index, "text": _shown(row)} for index, row in enumerate(texts or pairs)])
    metadata: dict[str, Json] = {}
    by_reward = ctx.spec.reward_model is not None
    if asked & REWARD_METRICS and by_reward:
        metadata |= _by_reward(ctx, rows, texts if "reward" in asked else [], pairs, report)
    if "perplexity" in asked or not by_reward:
        metadata |= _by_model(ctx, rows, texts if "perplexity" in asked else [], [] if by_reward else pairs, report)
    if _judges_reward(evaluation, by_reward):
        metadata["weights"] = metadata.get("reward_weights")
    told = [*metadata.pop("warnings", []), *rows.table.warnings]
    metadata |= {"rows_digest": rows_digest(row for row in rows.table.rows), "warnings": told}
    return Result(
        payload={"ok": True, "model": _model_name(ctx), "metrics": report.metrics, **kept_rows(ctx, report.rows)},
        metrics=report.metrics,
        metadata={key: value for key, value in metadata.items() if value is not None},
    )


def _by_model(
    ctx: TaskContext, rows: TrainingRows, texts: Sequence[Example], pairs: Sequence[Preference], report: Report
) -> dict[str, Json]:
    weights, used = weights_of(ctx)
    engine = load_transformers(ctx, weights)
    try:
        if texts:
            _perplexity(ctx, engine, rows, texts, report)
        if pairs:
            _likelier(ctx, engine, rows, pairs, report)
    finally:
        engine.close()
    told = [*weights.warnings, *engine.warnings]
    return {"engine": engine.name, "weights_digest": used.whole, "weights": list(used.parts), "warnings": told}


def _perplexity(
    ctx: TaskContext, engine: TransformersEngine, rows: TrainingRows, texts: Sequence[Example], report: Report
) -> None:
    """exp of the mean negative log-probability (nats) of a token, over all tokens of all rows."""
    separator = rows.fields.separator
    scored = [
        answer_tokens(engine, one.prompt, one.response, separator, index)
        if isinstance(one, Pair)
        else text_tokens(engine, one.text, index)
        for index, one in enumerate(texts)
    ]
    told = _log_probabilities(ctx, engine, scored)
    tokens = [one.count for one in scored]
    entropy = -math.fsum(told) / sum(tokens)
    losses = [-value / count for value, count in zip(told, tokens, strict=True)]
    single = [
        {"nll": loss, "tokens": count, "perplexity": _exp(loss)} for loss, count in zip(losses, tokens, strict=True)
    ]
    report.add("perplexity", _exp(entropy), single)


def _likelier(
    ctx: TaskContext, engine: TransformersEngine, rows: TrainingRows, pairs: Sequence[Preference], report: Report
) -> None:
    """Share of pairs whose chosen answer has the higher log-probability, as a whole (sum over its tokens)."""
    sides: list[list[float]] = []
    for side in ("chosen", "rejected"):
        scored = [_side(engine, rows, pair, side, index) for index, pair in enumerate(pairs)]
        sides.append(_log_probabilities(ctx, engine, scored))
    won = share_won(*sides)
    values = zip(*sides, won, strict=True)
    single = [{"chosen_logp": one, "rejected_logp": other, "win": win} for one, other, win in values]
    report.add("win_rate", mean("win_rate", won), single)


def _side(engine: TransformersEngine, rows: TrainingRows, pair: Preference, side: str, index: int) -> Scored:
    answer: Text = getattr(pair, side)
    if pair.prompt is None:
        return text_tokens(engine, answer, index)
    return answer_tokens(engine, pair.prompt, answer, rows.fields.separator, index)


def _log_probabilities(ctx: TaskContext, engine: TransformersEngine, scored: Sequence[Scored]) -> list[float]:
    def progress(done: int) -> None:
        ctx.progress.update(done, len(scored), "rows")
        if ctx.stop.is_set():
            raise Interrupted

    return engine.score([(one.ids, one.start) for one in scored], progress)


def _by_reward(
    ctx: TaskContext, rows: TrainingRows, texts: Sequence[Example], pairs: Sequence[Preference], report: Report
) -> dict[str, Json]:
    table, separator = rows.table.rows, rows.fields.separator
    if texts:
        answered = [
            Answered(one.prompt, _answer(one.response), row, separator)
            if isinstance(one, Pair)
            else Answered("", _answer(one.text), row)
            for one, row in zip(texts, table, strict=True)
        ]
        rewards = rewards_of(ctx, answered)
        report.add("reward", mean("reward", rewards), [{"reward": value} for value in rewards])
    if pairs:
        sides = [
            rewards_of(ctx, [_answered(pair, side, row, separator) for pair, row in zip(pairs, table, strict=True)])
            for side in ("chosen", "rejected")
        ]
        won = share_won(*sides)
        values = zip(*sides, won, strict=True)
        single = [{"chosen_reward": one, "rejected_reward": other, "win": win} for one, other, win in values]
        report.add("win_rate", mean("win_rate", won), single)
    return {"reward_weights": _reward_weights(ctx)}


def _answered(pair: Preference, side: str, row: Row, separator: str) -> Answered:
    answer = _answer(getattr(pair, side))
    return Answered("", answer, row) if pair.prompt is None else Answered(pair.prompt, answer, row, separator)


def _answer(text: Text) -> str:
    """The text, or the contents of a conversation's turns."""
    return text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)


def _reward_weights(ctx: TaskContext) -> list[str] | None:
    """Digest of the reward model; None for a function. An adapter is told with the model that it was made for."""
    from executors.training.reward_models import reward_folder

    reward = ctx.spec.reward_model
    if reward is None or reward.type == "function" or reward.identifier is None:
        return None
    folder = reward_folder(ctx, reward)
    adapter = folder / ADAPTER_FILE
    base = json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path") if adapter.exists() else None
    return list(digests(*([Path(base)] if base else []), folder).parts)


def _judges_reward(evaluation: Evaluation, by_reward: bool) -> bool:
    metric = evaluation.gate.metric if evaluation.gate else evaluation.metrics[0]
    return by_reward and metric in REWARD_METRICS


def _shown(row: Example | Preference) -> str:
    text = row.text if not isinstance(row, (Pair, Preference)) else row.prompt
    return _answer(text or (row.chosen if isinstance(row, Preference) else ""))[:_SHOWN]


def _model_name(ctx: TaskContext) -> str | None:
    source, reward = ctx.spec.model.source, ctx.spec.reward_model
    if ctx.spec.checkpoint.load is not None and source is None:
        return "checkpoint"
    return source.identifier if source else (reward.identifier if reward else None)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        raise ExecutorError(f"The mean loss is {value:g} nats a token, so there is no perplexity.", "") from None
