"""Prompt rows of inference, rag and agent stages, from any source of the language (SPEC §6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from executors.base import ExecutorError
from executors.combined_inputs import combined_prompts
from executors.context import TaskContext
from executors.fetch import Wanted, locate
from executors.graph_template import briefing
from executors.messages import Text, as_conversation, is_conversation
from executors.tables import Table, open_table, pulled_data, read_jsonl, table_of
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.data import Data

_PROMPT_KEYS = ("prompt", "messages", "query", "question", "instruction", "text", "task", "input")


@dataclass(frozen=True)
class PromptRow:
    """One prompt and what is carried along with it."""

    index: int
    prompt: Text
    metadata: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRows:
    """All rows of a stage in order; warnings say what a person should know about the source."""

    rows: tuple[PromptRow, ...]
    warnings: tuple[str, ...] = ()


def prompt_rows(ctx: TaskContext) -> PromptRows:
    """Materialise the prompts of a stage or shard: slice, then shuffle. Raises ExecutorError naming row and key."""
    if ctx.rows is not None:
        return ctx.rows
    data = ctx.spec.data
    found = _from_data(ctx, data) or _from_elsewhere(ctx)
    if found is None:
        raise ExecutorError(
            "The stage has no prompts.", "Give data.items, data.url, data.jsonl, inference.prompts, query or task."
        )
    if not found.rows:
        raise ExecutorError("The prompt source is empty: 0 rows.", "Check the split and the file that data names.")
    return found


def _from_data(ctx: TaskContext, data: Data) -> PromptRows | None:
    kind = data.type
    if kind == "graph_template" or (kind is None and data.template is not None):
        return PromptRows((PromptRow(0, briefing(ctx)),))
    if kind == "static" or (kind is None and data.task is not None):
        if data.task is None:
            raise ExecutorError("data.type is static, but data.task is missing.", "Give data.task.")
        return PromptRows((PromptRow(0, data.task),))
    if kind == "list" or (kind is None and data.items is not None):
        return _from_list(data)
    if kind == "jsonl" or (kind is None and data.jsonl is not None):
        return _from_jsonl(ctx, data)
    if kind == "dataset" or pulled_data(ctx) is not None:
        return _from_dataset(ctx, data)
    if data.prompts is not None:
        return PromptRows(_listed("data.prompts", data.prompts, []))
    if data.input_sources is not None:
        return PromptRows(_listed("data.input_sources", combined_prompts(ctx), []))
    return None


def _from_elsewhere(ctx: TaskContext) -> PromptRows | None:
    spec = ctx.spec
    if spec.inference.prompts is not None:
        return PromptRows(_listed("inference.prompts", spec.inference.prompts, []))
    if spec.rag.queries is not None:
        return PromptRows(_listed("rag.queries", list(spec.rag.queries), []))
    for key, value in (("query", spec.query), ("task", spec.task)):
        if value is not None:
            many = isinstance(value, list) and not is_conversation(value)
            return PromptRows(_listed(key, value if many else [value], []))
    return None


def _from_list(data: Data) -> PromptRows:
    if data.items is None:
        raise ExecutorError("data.type is list, but data.items is missing.", "Give data.items.")
    metadata = data.metadata or []
    if metadata and len(metadata) != len(data.items):
        raise ExecutorError(
            f"data.metadata has {len(metadata)} entries for {len(data.items)} items.", "Give one entry an item."
        )
    rows = _listed("data.items", data.items, metadata)
    if not data.shuffle:
        return PromptRows(rows)
    order = table_of([{"row": row.index} for row in rows], "data.items").shuffled(data.seed)
    shuffled = [rows[row["row"]] for row in order.rows]
    return PromptRows(tuple(PromptRow(index, row.prompt, row.metadata) for index, row in enumerate(shuffled)))


def _listed(key: str, items: list[Json], metadata: list[Json]) -> tuple[PromptRow, ...]:
    rows = []
    for index, item in enumerate(items):
        prompt, carried = _prompt_of_item(f"{key}[{index}]", item)
        extra = metadata[index] if metadata else {}
        if not isinstance(extra, Mapping):
            raise ExecutorError(f"data.metadata[{index}] is {extra!r:.60}, not a map.", "Write {name: value}.")
        rows.append(PromptRow(index, prompt, carried | dict(extra)))
    return tuple(rows)


def _prompt_of_item(at: str, item: Json) -> tuple[Text, dict[str, Json]]:
    """A text, a conversation, or a map with one of the usual prompt keys; further keys become metadata."""
    if isinstance(item, Mapping):
        key = next((key for key in _PROMPT_KEYS if key in item), None)
        if key is None:
            raise ExecutorError(
                f"{at} has no prompt; its keys are {', '.join(map(str, item))}.", f"One of {', '.join(_PROMPT_KEYS)}."
            )
        carried = {str(name): value for name, value in item.items() if name not in (key, "metadata", "index")}
        nested = item.get("metadata")
        return as_prompt(f"{at}.{key}", item[key]), carried | (dict(nested) if isinstance(nested, Mapping) else {})
    return as_prompt(at, item), {}


def as_prompt(at: str, value: Json) -> Text:
    """Return the prompt that a value holds: text, conversation, or the first element of a list of texts."""
    if is_conversation(value):
        return as_conversation(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ExecutorError(f"{at} is {value!r:.60} ({type(value).__name__}), not a prompt.", "Text or a conversation.")


def _from_jsonl(ctx: TaskContext, data: Data) -> PromptRows:
    table = table_of(read_jsonl(jsonl_path(ctx)), "data.jsonl")
    jsonl = data.jsonl
    field_name = jsonl and (jsonl.prompt_field or jsonl.query_field or jsonl.text_field)
    column = field_name or next((key for key in _PROMPT_KEYS if key in table.columns), "prompt")
    return _from_table(data, table, "data.jsonl.prompt_field", column)


def jsonl_path(ctx: TaskContext) -> Path:
    """The local file that `data.jsonl` names; raises ExecutorError when none of its alternatives works."""
    jsonl = ctx.spec.data.jsonl
    if jsonl is None:
        raise ExecutorError("data.type is jsonl, but data.jsonl is missing.", "Give data.jsonl: {path: FILE}.")
    pulled = pulled_data(ctx)
    if jsonl.path is None and jsonl.task_id is None and pulled is not None and pulled.is_file():
        return pulled
    names = ("*.jsonl",)
    wanted = Wanted("data.jsonl", names, jsonl.path, jsonl.task_id, jsonl.url, jsonl.headers, jsonl.timeout_sec)
    return locate(wanted, results=ctx.results, downloads=ctx.out / ".cache" / "downloads")


def _from_dataset(ctx: TaskContext, data: Data) -> PromptRows:
    path = pulled_data(ctx)
    if path is None:
        raise ExecutorError("data.type is dataset, but data.url names no data set.", "Give data.url.")
    cache = ctx.out / ".cache" / "datasets"
    table = open_table(path, split=data.split, config=data.name or data.config_name, cache=cache)
    return _from_table(data, table, "data.column", data.column)


def _from_table(data: Data, table: Table, key: str, column: str) -> PromptRows:
    column = table.column_of(key, column)
    renames = _metadata_columns(data, table, column)
    if data.shuffle:
        table = table.shuffled(data.seed)
    if data.max_samples is not None:
        table = table.picked(range(min(data.max_samples, len(table.rows))))
    rows = tuple(
        PromptRow(
            index,
            as_prompt(f"{table.origin} row {index}, column {column}", row.get(column)),
            {name: row.get(source) for source, name in renames.items()},
        )
        for index, row in enumerate(table.rows)
    )
    return PromptRows(rows, table.warnings)


def _metadata_columns(data: Data, table: Table, prompt_column: str) -> dict[str, str]:
    """Column → name in the metadata. A map may be written either way round; the side that is a column decides."""
    kept = {name: name for name in table.columns if name != prompt_column} if data.metadata_include_all else {}
    asked = data.metadata_columns
    if isinstance(asked, list):
        return kept | {table.column_of("data.metadata_columns", name): name for name in asked}
    for left, right in asked.items():
        column, name = (right, left) if left not in table.columns and right in table.columns else (left, right)
        kept[table.column_of("data.metadata_columns", column)] = name
    return kept
