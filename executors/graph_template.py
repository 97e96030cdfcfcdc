"""`data.type: graph_template`: one prompt made of the results of other stages."""

from __future__ import annotations

import json
import re

from executors.base import ExecutorError
from executors.context import TaskContext
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.data import GraphTemplate, TemplateColumn
from mloc_dagster.spec.references import BadReference, as_text, lookup, parse

CHARACTERS_OF_A_TOKEN = 4
"""Rough size of a token in English text; used only to keep one column from filling the context."""
_COLUMN_TOKENS = 1500
_CUT_NOTE = "\n[... cut to fit]"
_PLACE = re.compile(r"\{col(\d+)_(label|value)\}")


def briefing(ctx: TaskContext) -> str:
    """Return the prompt. Raises ExecutorError when a column finds no value and has no default."""
    template = ctx.spec.data.template
    if template is None:
        raise ExecutorError("data.type is graph_template, but data.template is missing.", "Give data.template.")
    columns = [(column.label, _cut(_text(_value(ctx, column)))) for column in template.columns]
    body = _fill(template.text, columns) if template.text else _layout(template, columns)
    system = ctx.spec.inference.system_prompt
    return f"{body}\n\n{system}" if template.append_system_prompt and system else body


def _value(ctx: TaskContext, column: TemplateColumn) -> Json:
    place = column.expr or ".".join(part for part in (column.node, column.path or "result") if part)
    if column.expr is not None and not re.fullmatch(r"[\w-]+(\.\w+|\[\d+\])+", column.expr.strip()):
        return column.expr
    try:
        return lookup(parse(place), ctx.envelopes, {})
    except BadReference as error:
        if column.default is not None:
            return column.default
        raise ExecutorError(f"data.template column {column.label!r}: {error}", "Mend it or give a default.") from error


def _text(value: Json) -> str:
    return as_text(value) if not isinstance(value, dict | list) else json.dumps(value, ensure_ascii=False, indent=1)


def _cut(text: str) -> str:
    limit = _COLUMN_TOKENS * CHARACTERS_OF_A_TOKEN
    return text if len(text) <= limit else text[: limit - len(_CUT_NOTE)] + _CUT_NOTE


def _fill(text: str, columns: list[tuple[str, str]]) -> str:
    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        if number >= len(columns):
            raise ExecutorError(
                f"data.template.text names {match[0]}, but has {len(columns)} columns.", "Add a column."
            )
        return columns[number][0 if match[2] == "label" else 1]

    return _PLACE.sub(place, text)


def _layout(template: GraphTemplate, columns: list[tuple[str, str]]) -> str:
    if template.name != "two_column_briefing":
        raise ExecutorError(
            f"data.template.name {template.name!r} is unknown.", "Use two_column_briefing, or write the text inline."
        )
    options = template.options
    parts = [f"You are {options.role}." if options.role else "", options.intro or ""]
    parts += [f"## {label}\n{value}" for label, value in columns]
    return "\n\n".join(part for part in [*parts, options.closing or ""] if part)
