"""Rewards for generated answers: built in, from an installed package, or given by a model.

A reward function takes the prompts, the completions and the rows that the prompts came from, all of one length, and
returns one number a completion. `rows[i]["prompt"]` is the prompt as the trainer sees it (text or conversation); the
other columns of the data are there under their names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.rows import TrainingRows
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.model import RewardModel

GROUP = "mloc.rewards"
"""Entry-point group in which packages offer reward functions."""

Row = Mapping[str, Json]
RewardFunction = Callable[[list[str], list[str], Sequence[Row]], list[float]]

_REFERENCES = ("reference", "response", "answer", "completion", "output", "solution", "ground_truth")
_WORDS = re.compile(r"[a-z']+")
_POSITIVE = frozenset(
    _WORDS.findall(
        "admire amazing beautiful best better brilliant calm charming cheerful clear comfortable delight delightful "
        "easy encouraging enjoy excellent fantastic fine friendly fun glad good grateful great happy helpful hope "
        "hopeful joy joyful kind like love loved lovely nice perfect pleasant pleased proud smile strong success sunny "
        "superb thank thanks warm welcome well wonderful worthy yes"
    )
)
_NEGATIVE = frozenset(
    _WORDS.findall(
        "afraid alone angry annoying awful bad boring broken cold complain cruel cry dead despair difficult dirty "
        "disappointed disgusting dull evil fail failed failure fear hard hate hated hopeless horrible hurt lose lost "
        "mean miserable never no pain poor problem sad sick sorry stupid terrible tired ugly unhappy useless wasted "
        "weak worse worst wrong"
    )
)


def reward_function(ctx: TaskContext) -> RewardFunction:
    """Return what `spec.reward_model` names, multiplied by its `scale`.

    Raises ExecutorError when there is none, when it is unknown or when its model cannot be loaded; the function itself
    raises one when a reward is missing or not a finite number.
    """
    reward = _reward(ctx)
    name = _name(reward)
    if name is not None:
        score = _function(name, ctx)
    else:
        from executors.training.reward_models import model_score

        score = model_score(ctx, reward)
    label = name or reward.identifier or reward.type
    return lambda prompts, completions, rows: [
        value * reward.scale for value in _rewards(score, label, prompts, completions, rows)
    ]


def check_reward(ctx: TaskContext, rows: TrainingRows) -> list[str]:
    """Check before any weights are loaded that the reward is known and that the rows hold what it reads.

    Returns warnings for keys of `spec.reward_model` that this kind of reward does not read. Raises ExecutorError.
    """
    reward = _reward(ctx)
    name = _name(reward)
    if name is None:
        unread = ["positive_label", "negative_label"] if reward.type == "regression" else []
    else:
        if name == "exact_match":
            _check_references(ctx, rows)
        elif name not in _BUILT_IN:
            _offered(name)
        unread = ["positive_label", "negative_label", *([] if name == "length" else ["max_length"])]
    what = f"the function {name}" if name else f"a {reward.type} model"
    return [f"reward_model.{key} is not used by {what}" for key in unread if getattr(reward, key) is not None]


def _reward(ctx: TaskContext) -> RewardModel:
    if ctx.spec.reward_model is None:
        raise ExecutorError(
            f"spec.reward_model is missing, and taskType {ctx.spec.task_type} needs a reward.",
            "Write reward_model: {type: function, identifier: exact_match}, or name a model.",
        )
    return ctx.spec.reward_model


def _name(reward: RewardModel) -> str | None:
    """The function's name, or None where a model gives the reward."""
    if reward.type == "function":
        if reward.identifier is None:
            raise ExecutorError(
                "reward_model.type is function, but reward_model.identifier names none.",
                f"Built in: {', '.join(sorted(_BUILT_IN))}.",
            )
        return reward.identifier
    if reward.identifier is None:
        if reward.type == "sentiment":
            return "sentiment"
        raise ExecutorError(
            f"reward_model.type is {reward.type}, but reward_model.identifier names no model.",
            "Write its hub id, a folder, or ${stage.result.final_model_path}.",
        )
    return None


def _function(name: str, ctx: TaskContext) -> RewardFunction:
    built_in = _BUILT_IN.get(name)
    return built_in(ctx) if built_in else _loaded(_offered(name))


def _loaded(point: EntryPoint) -> RewardFunction:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ExecutorError(
            f"The reward function {point.name!r} ({point.value}) cannot be loaded: {error}.", "Mend or reinstall it."
        ) from error


def _offered(name: str) -> EntryPoint:
    points = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if len(points) > 1:
        raise ExecutorError(
            f"The reward function {name!r} is offered by more than one package: {', '.join(sorted(points))}.",
            "Uninstall all but one of them.",
        )
    return next(iter(points.values()), None) or _unknown(name)


def _unknown(name: str) -> NoReturn:
    known = sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})
    near = get_close_matches(name, known, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ExecutorError(
        f"reward_model.identifier {name!r} is no reward function.{guess}",
        f"There are {', '.join(known)}; packages add some with the entry-point group {GROUP}.",
    )


def _rewards(
    score: RewardFunction, name: str, prompts: list[str], completions: list[str], rows: Sequence[Row]
) -> list[float]:
    """Call the function and hold it to its contract."""
    try:
        values = list(score(prompts, completions, rows))
    except ExecutorError:
        raise
    except Exception as error:
        what = f"The reward function {name!r} failed: {type(error).__name__}: {error}."
        raise ExecutorError(what, "Mend the function.") from error
    if len(values) != len(completions):
        raise ExecutorError(
            f"The reward function {name!r} returned {len(values)} rewards for {len(completions)} completions.",
            "It must return one number a completion, in order.",
        )
    for value, completion in zip(values, completions, strict=True):
        if isinstance(value, str) or value is None or not math.isfinite(value):
            raise ExecutorError(
                f"The reward function {name!r} returned {value!r} for the completion {completion!r:.80}.",
                "A reward is a finite number.",
            )
    return [float(value) for value in values]


def _exact_match(ctx: TaskContext) -> RewardFunction:
    """1 where the answer is the row's reference, but for white space around it; else 0."""

    def score(prompts: list[str], completions: list[str], rows: Sequence[Row]) -> list[float]:
        column = _reference_column(ctx, tuple(dict.fromkeys(key for row in rows for key in row)))
        pairs = zip(completions, rows, strict=True)
        return [float(answer.strip() == str(row[column]).strip()) for answer, row in pairs]

    return score


def _reference_column(ctx: TaskContext, columns: Sequence[str]) -> str:
    """`data.response_column` where it is given, else the first column whose name says that it holds the answer."""
    data = ctx.spec.data
    asked = (data.jsonl.response_field if data.jsonl else None) or data.response_column
    found = asked if asked in columns else None if asked else next((key for key in _REFERENCES if key in columns), None)
    if found is None:
        raise ExecutorError(
            f"The reward function exact_match needs a reference in each row: there is no column "
            f"{repr(asked) if asked else 'of that kind'}; columns: {', '.join(columns) or 'none'}.",
            "Name it with data.response_column.",
        )
    return found


def _check_references(ctx: TaskContext, rows: TrainingRows) -> None:
    column = _reference_column(ctx, rows.table.columns)
    for index, row in enumerate(rows.table.rows):
        value = row.get(column)
        if not isinstance(value, str | int | float | bool) or value == "" or value != value:
            raise ExecutorError(
                f"{rows.table.origin} row {index}: {column!r} is {value!r:.60} ({type(value).__name__}); "
                "the reference of exact_match must be text or a number.",
                "Mend or drop the row; rows are counted from 0.",
            )


def _json_validity(ctx: TaskContext) -> RewardFunction:
    """1 where the whole answer is one JSON value (RFC 8259), else 0."""

    def is_json(text: str) -> bool:
        try:
            json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
        except (ValueError, RecursionError):
            return False
        return True

    return lambda prompts, completions, rows: [float(is_json(answer)) for answer in completions]


def _length(ctx: TaskContext) -> RewardFunction:
    """Characters of the answer without white space around it, at most `max_length`; scale < 0 favours short ones."""
    most = (ctx.spec.reward_model and ctx.spec.reward_model.max_length) or math.inf
    return lambda prompts, completions, rows: [float(min(len(answer.strip()), most)) for answer in completions]


def _sentiment(ctx: TaskContext) -> RewardFunction:
    """(positive - negative) / (positive + negative) words of a small English lexicon, in [-1, 1]; 0 without any."""

    def of(text: str) -> float:
        words = _WORDS.findall(text.lower())
        good, bad = sum(word in _POSITIVE for word in words), sum(word in _NEGATIVE for word in words)
        return (good - bad) / (good + bad) if good or bad else 0.0

    return lambda prompts, completions, rows: [of(answer) for answer in completions]


_BUILT_IN: Mapping[str, Callable[[TaskContext], RewardFunction]] = {
    "exact_match": _exact_match,
    "json_validity": _json_validity,
    "length": _length,
    "sentiment": _sentiment,
}
