"""Training rows from any source of the language (SPEC §7), the same way for every trainer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.messages import Message, Text, as_conversation, is_conversation
from executors.prompts import jsonl_path
from executors.tables import Row, Table, open_table, pulled_data, read_jsonl, table_of
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.data import Data

_RESPONSES = ("response", "completion", "output", "answer")
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Fields:
    """The columns that the task file names; None where it leaves the choice to us."""

    prompt: str | None = None
    response: str | None = None
    text: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    separator: str = "\n\n"
    template: str | None = None


@dataclass(frozen=True)
class TrainingRows:
    """Rows as they came, the columns that count, and what a person should know about the source."""

    table: Table
    fields: Fields


@dataclass(frozen=True)
class Pair:
    """A prompt and the answer to learn."""

    prompt: Text
    response: Text


@dataclass(frozen=True)
class Whole:
    """A text, or a conversation, of which every token is learned."""

    text: Text


Example = Pair | Whole


@dataclass(frozen=True)
class Preference:
    """Two answers of which the first is better. Without a prompt, both hold the whole text or conversation."""

    prompt: Text | None
    chosen: Text
    rejected: Text


@dataclass(frozen=True)
class Asked:
    """A prompt to be answered, and the row that it came from with all its columns."""

    prompt: Text
    row: Row


def training_rows(ctx: TaskContext) -> TrainingRows:
    """Return the rows of the first source that is given; raises ExecutorError when there is none or it is empty."""
    data = ctx.spec.data
    found = _table(ctx, data)
    if found is None:
        raise ExecutorError(
            "The stage has no training rows.", "Give data.jsonl, data.dataset_name, data.prompts or data.preferences."
        )
    table, fields = found
    if data.shuffle:
        table = table.shuffled(data.seed)
    if data.max_samples is not None:
        table = table.picked(range(min(data.max_samples, len(table.rows))))
    if len(table.rows) == 0:
        raise ExecutorError(f"{table.origin} is empty: 0 rows.", "Check split, max_samples and the file.")
    return TrainingRows(table, fields)


def examples(rows: TrainingRows) -> list[Example]:
    """Return what supervised training learns from.

    Raises ExecutorError naming row and column of the first bad value.
    """
    return list(_examples(rows.table, rows.fields))


def preferences(rows: TrainingRows) -> list[Preference]:
    """Return the pairs that preference training learns from.

    Raises ExecutorError naming row and column of the first bad value, or when no pair has two different answers.
    """
    pairs = list(_preferences(rows.table, rows.fields))
    if all(pair.chosen == pair.rejected for pair in pairs):
        raise ExecutorError(
            f"{rows.table.origin}: chosen equals rejected in every one of its {len(pairs)} rows, so no answer is "
            "better than another (first: row 0).",
            "Check data.chosen_column and data.rejected_column.",
        )
    return pairs


def asked(rows: TrainingRows) -> list[Asked]:
    """Return the prompts that reinforcement learning answers, with their rows.

    Raises ExecutorError naming row and column of the first bad value.
    """
    table, fields = rows.table, rows.fields
    if fields.template is not None:
        return [Asked(_rendered(fields.template, row, i, table), row) for i, row in enumerate(table.rows)]
    column = _prompt_column(table, fields)
    return [Asked(_open_prompt(row, column, index, table), row) for index, row in enumerate(table.rows)]


def as_turns(text: Text, role: str) -> list[Message]:
    """The text as the one turn of a conversation; a conversation as it is."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def needs_template(table: Table) -> ExecutorError:
    """What is wrong when rows hold conversations, but the model has no chat template."""
    return ExecutorError(
        f"{table.origin} holds conversations, but the model has no chat template.",
        "Use a chat model, or plain text columns.",
    )


def _table(ctx: TaskContext, data: Data) -> tuple[Table, Fields] | None:
    fields = Fields(
        data.prompt_column, data.response_column, data.text_field, data.chosen_column, data.rejected_column,
        data.separator, data.prompt_template,
    )  # fmt: skip
    if data.jsonl is not None:
        one = data.jsonl
        named = Fields(
            one.prompt_field or one.query_field or fields.prompt, one.response_field or fields.response,
            one.text_field or fields.text, one.chosen_field or fields.chosen, one.rejected_field or fields.rejected,
            fields.separator if one.separator is None else one.separator, fields.template,
        )  # fmt: skip
        path = jsonl_path(ctx)
        rows = read_jsonl(path) if path.suffix in (".jsonl", ".ndjson") else None
        cache = ctx.out / ".cache" / "datasets"
        return (open_table(path, cache=cache) if rows is None else table_of(rows, path.name)), named
    path = pulled_data(ctx)
    if path is not None:
        cache = ctx.out / ".cache" / "datasets"
        table = open_table(path, split=data.split, config=data.config_name or data.name, cache=cache)
        return table, fields
    if data.prompts is not None:
        return table_of([_inline(index, item) for index, item in enumerate(data.prompts)], "data.prompts"), fields
    if data.preferences is not None:
        return table_of([item.model_dump() for item in data.preferences], "data.preferences"), fields
    return None


def _inline(index: int, item: Json) -> Row:
    if isinstance(item, Mapping):
        return item
    if isinstance(item, str):
        return {"text": item}
    raise ExecutorError(f"data.prompts[{index}] is {item!r:.60}, not a row.", "Write {prompt: ..., response: ...}.")


def _examples(table: Table, fields: Fields) -> Iterator[Example]:
    if fields.template is not None:
        yield from (Whole(_rendered(fields.template, row, index, table)) for index, row in enumerate(table.rows))
        return
    whole = _whole_column(table, fields)
    if whole is not None:
        yield from (Whole(_text(row, whole, index, table)) for index, row in enumerate(table.rows))
        return
    prompt, response = _pair_columns(table, fields)
    for index, row in enumerate(table.rows):
        pair = Pair(_text(row, prompt, index, table), _text(row, response, index, table))
        yield _aligned(pair, index, table, prompt, response)


def _preferences(table: Table, fields: Fields) -> Iterator[Preference]:
    named = fields.prompt is not None or "prompt" in table.columns
    prompt = table.column_of("prompt_column", fields.prompt or "prompt") if named else None
    chosen = table.column_of("chosen_column", fields.chosen or "chosen")
    rejected = table.column_of("rejected_column", fields.rejected or "rejected")
    for index, row in enumerate(table.rows):
        better, worse = (_text(row, column, index, table) for column in (chosen, rejected))
        if isinstance(better, str) != isinstance(worse, str):
            raise ExecutorError(
                f"{table.origin} row {index}: of {chosen!r} and {rejected!r} one is text, the other a conversation.",
                "Write both in the same way.",
            )
        if prompt is None:
            yield Preference(None, better, worse)
            continue
        asked = _text(row, prompt, index, table)
        one = _aligned(Pair(asked, better), index, table, prompt, chosen)
        other = _aligned(Pair(asked, worse), index, table, prompt, rejected)
        yield Preference(one.prompt, one.response, other.response)


def _prompt_column(table: Table, fields: Fields) -> str:
    if fields.prompt is None and fields.text is not None:
        return table.column_of("text_field", fields.text)
    inline = fields.prompt is None and "prompt" not in table.columns and "text" in table.columns
    return table.column_of("prompt_column", "text" if inline else fields.prompt or "prompt")


def _open_prompt(row: Row, column: str, index: int, table: Table) -> Text:
    prompt = _text(row, column, index, table)
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise ExecutorError(
            f"{table.origin} row {index}: {column!r} ends with the assistant's turn, so there is nothing to answer.",
            "Name a column whose conversations end with the user's turn (data.prompt_column).",
        )
    return prompt


def _whole_column(table: Table, fields: Fields) -> str | None:
    if fields.text is not None:
        return table.column_of("text_field", fields.text)
    if fields.prompt or fields.response or ("prompt" in table.columns and _answer(table.columns)):
        return None
    return next((name for name in ("messages", "text") if name in table.columns), None)


def _pair_columns(table: Table, fields: Fields) -> tuple[str, str]:
    prompt = table.column_of("prompt_column", fields.prompt or "prompt")
    response = fields.response or _answer(table.columns) or fields.chosen
    if response is None and "chosen" in table.columns:
        response = "chosen"
    return prompt, table.column_of("response_column", response or "response")


def _answer(columns: Sequence[str]) -> str | None:
    return next((name for name in _RESPONSES if name in columns), None)


def _text(row: Row, column: str, index: int, table: Table) -> Text:
    value = row.get(column)
    if isinstance(value, str) and value:
        return value
    if is_conversation(value):
        return as_conversation(value)
    what = "empty" if value in (None, "", []) else f"{value!r:.60} ({type(value).__name__})"
    raise ExecutorError(
        f"{table.origin} row {index}: {column!r} is {what}; text or a conversation is needed.",
        "Mend or drop the row; rows are counted from 0.",
    )


def _aligned(pair: Pair, index: int, table: Table, prompt: str, response: str) -> Pair:
    """Make both sides of a row texts, or both conversations; an answer that repeats the prompt's turns loses them."""
    asked, answered = pair.prompt, pair.response
    if isinstance(asked, str) and isinstance(answered, str):
        return pair
    turns, reply = as_turns(asked, "user"), as_turns(answered, "assistant")
    if reply[: len(turns)] == turns:
        reply = reply[len(turns) :]
    if not reply:
        raise ExecutorError(f"{table.origin} row {index}: {response!r} adds nothing to {prompt!r}.", "Drop the row.")
    return Pair(turns, reply)


def _rendered(template: str, row: Row, index: int, table: Table) -> str:
    def place(match: re.Match[str]) -> str:
        if match[1] not in table.columns:
            raise ExecutorError(
                f"prompt_template names {match[0]}, but {table.origin} has no such column.",
                f"Columns: {', '.join(table.columns)}.",
            )
        value = row.get(match[1])
        if value is None:
            raise ExecutorError(f"{table.origin} row {index}: {match[1]!r} is empty.", "Mend or drop the row.")
        return str(value)

    return _PLACE.sub(place, template)
