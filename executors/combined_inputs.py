"""`data.input_sources` with `data.processing`: queries, contexts and first answers combined into prompts."""

from __future__ import annotations

import re
from pathlib import Path

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.tables import open_table
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.data import InputSource, Processing
from mloc_dagster.spec.references import BadReference, as_text, lookup, parse

_PLACE = re.compile(r"\{(query|question|context|initial_answer|answer)\}")


def combined_prompts(ctx: TaskContext) -> list[Json]:
    """Return one prompt for each query. Raises ExecutorError when contexts or answers do not match the queries."""
    sources, processing = ctx.spec.data.input_sources, ctx.spec.data.processing or Processing()
    if sources is None or sources.queries is None:
        raise ExecutorError("data.input_sources has no queries.", "Give data.input_sources.queries.")
    queries = _texts(ctx, "queries", sources.queries)
    contexts = _texts(ctx, "contexts", sources.contexts)
    answers = _texts(ctx, "initial_answers", sources.initial_answers)
    prompts: list[Json] = []
    for index, query in enumerate(queries):
        context = _of_row("contexts", contexts, index, len(queries), processing)
        answer = _of_row("initial_answers", answers, index, len(queries), processing)
        prompts.append(_prompt(processing, query, _cut(context, processing), answer))
    return prompts


def _texts(ctx: TaskContext, name: str, source: InputSource | None) -> list[str]:
    if source is None:
        return []
    at = f"data.input_sources.{name}"
    if source.source == "manual":
        return source.questions
    if source.source == "previous_stage":
        return [_text(value, source, at) for value in _from_stage(ctx, source, at)]
    path = Path(source.file_path) if source.source == "file" and source.file_path else ctx.data_path
    if path is None:
        raise ExecutorError(f"{at}: no file or data set was given.", "Give file_path or dataset_config.")
    split = source.dataset_config.split if source.dataset_config else "train"
    table = open_table(path, split=split, cache=ctx.out / ".cache" / "datasets")
    wanted = source.dataset_config.column if source.dataset_config else source.context_field or source.answer_field
    column = table.column_of(f"{at}.column", wanted or "text")
    return [as_text(row.get(column)) for row in table.rows]


def _from_stage(ctx: TaskContext, source: InputSource, at: str) -> list[Json]:
    place = source.stage_output or ""
    try:
        value = lookup(parse(place if "." in place else f"{place}.result.items"), ctx.envelopes, {})
    except BadReference as error:
        raise ExecutorError(f"{at}.stage_output: {error}", "Name an ancestor stage.") from error
    return value if isinstance(value, list) else [value]


def _text(value: Json, source: InputSource, at: str) -> str:
    if not isinstance(value, dict):
        return as_text(value)
    name = (
        source.context_field or source.answer_field or next((k for k in ("output", "answer", "text") if k in value), "")
    )
    if name not in value:
        raise ExecutorError(f"{at}: an item has no {name!r}; it has {', '.join(value)}.", "Set context_field.")
    return as_text(value[name])


def _of_row(name: str, texts: list[str], index: int, rows: int, processing: Processing) -> str:
    """The text of one row: its own when there is one for each, else all of them together."""
    if not texts:
        return ""
    if len(texts) == rows:
        return texts[index]
    if len(texts) == 1 or (name == "contexts" and processing.combine_contexts):
        return processing.context_separator.join(texts)
    raise ExecutorError(f"data.input_sources.{name} has {len(texts)} rows for {rows} queries.", "Give one a query.")


def _cut(context: str, processing: Processing) -> str:
    """Keep `max_context_length` characters: the head, the tail, or (smart) the head up to the end of a sentence."""
    limit = processing.max_context_length
    if limit is None or len(context) <= limit:
        return context
    if processing.context_truncation == "tail":
        return context[-limit:]
    head = context[:limit]
    end = max(head.rfind(mark) for mark in (". ", "\n", "。"))
    return head[: end + 1] if processing.context_truncation == "smart" and end > limit // 2 else head


def _prompt(processing: Processing, query: str, context: str, answer: str) -> str:
    if processing.prompt_template is None:
        return processing.input_separator.join(part for part in (context, query, answer) if part)
    values = {"query": query, "question": query, "context": context, "initial_answer": answer, "answer": answer}
    return _PLACE.sub(lambda match: values[match[1]], processing.prompt_template)
