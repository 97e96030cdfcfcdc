"""`postprocess.jsonl_export`: one JSON line per generated item (SPEC §8)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from executors.base import ExecutorError
from executors.context import TaskContext
from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.inference import ExportField, JsonlExport

Item = Mapping[str, Json]
_SHORTHAND = ("prompt", "output")
_NAMED_ROWS = 10


def export_jsonl(ctx: TaskContext, export: JsonlExport, items: list[dict[str, Json]]) -> dict[str, Json]:
    """Write the file and return `{path, url, record_count, fields}`.

    A field that finds nothing takes its fallback, then its default, else null. Raises ExecutorError naming the rows
    in which a required field has no value.
    """
    fields = {name: as_field(value) for name, value in export.fields.items()}
    unknown = [name for name in export.required_fields if name not in fields]
    if unknown:
        raise ExecutorError(
            f"postprocess.jsonl_export.required_fields names {unknown[0]!r}, which is no exported field.",
            f"Fields: {', '.join(fields)}.",
        )
    records = [{name: _value(field, item) for name, field in fields.items()} for item in items]
    _check_required(records, items, export.required_fields)
    path = inside(ctx.out, export.path)
    lines = [json.dumps(ctx.redact(record), ensure_ascii=False) for record in records]
    write_text(path, "".join(f"{line}\n" for line in lines))
    return {"path": str(path), "url": path.as_uri(), "record_count": len(records), "fields": list(fields)}


def inside(folder: Path, wanted: str) -> Path:
    """Return where a path of the file lands inside the folder; raises ExecutorError for `..`."""
    parts = PurePosixPath(wanted).parts
    if ".." in parts:
        raise ExecutorError(
            f"postprocess.jsonl_export.path {wanted!r} leaves the result folder.", "Write it without '..'."
        )
    kept = [part for part in parts if part not in ("/", ".")]
    if not kept:
        raise ExecutorError(f"postprocess.jsonl_export.path {wanted!r} names no file.", "Write a file name.")
    return folder.resolve().joinpath(*kept)


def as_field(value: ExportField | Json) -> ExportField:
    """The long form of a field: `prompt`, `output`, `metadata.k`, `item.k`, any other value is a constant."""
    if isinstance(value, ExportField):
        return value
    if isinstance(value, str):
        source, _, key = value.partition(".")
        if value in _SHORTHAND:
            return ExportField(source=value)  # pyright: ignore[reportArgumentType]
        if source in ("metadata", "item") and key:
            return ExportField(source=source, key=key)  # pyright: ignore[reportArgumentType]
    if isinstance(value, Mapping) and ({"from", "source"} & set(value)):
        given = {
            "source" if key == "from" else "value" if key == "literal" else key: item for key, item in value.items()
        }
        return ExportField.model_validate(given)
    return ExportField(source="literal", value=value)


def _value(field: ExportField, item: Item) -> Json:
    for candidate in (_found(field, item), _fallback(field.fallback, item), field.default):
        if not _missing(candidate):
            return candidate
    return None


def _found(field: ExportField, item: Item) -> Json:
    if field.source == "literal":
        return field.value
    if field.source in ("prompt", "output"):
        value = item.get(field.source)
        return _descend(value, field.key) if field.key and isinstance(value, Mapping) else value
    if field.source == "metadata":
        metadata = item.get("metadata")
        return _descend(metadata, field.key) if field.key else metadata
    found = _descend(item, field.key) if field.key else item
    return _descend(item.get("metadata"), field.key) if found is None else found


def _fallback(fallback: Json, item: Item) -> Json:
    """A fallback may name another place, in the short form, or be a value."""
    if isinstance(fallback, list):
        values = (_fallback(one, item) for one in fallback)
        return next((value for value in values if not _missing(value)), None)
    return None if fallback is None else _found(as_field(fallback), item)


def _descend(value: Json, key: str | None) -> Json:
    if key and isinstance(value, Mapping) and key in value:
        return value[key]
    for step in (key or "").split("."):
        if isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, Mapping):
            value = value.get(step)
        else:
            return None
    return value


def _missing(value: Json) -> bool:
    return value is None or value == ""


def _check_required(records: list[dict[str, Json]], items: list[dict[str, Json]], required: list[str]) -> None:
    for name in required:
        rows = [item["index"] for record, item in zip(records, items, strict=True) if _missing(record[name])]
        if rows:
            more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
            raise ExecutorError(
                f"postprocess.jsonl_export: the required field {name!r} has no value in rows "
                f"{', '.join(map(str, rows[:_NAMED_ROWS]))}{more}.",
                "Give it a fallback or a default, or look at what these rows generated.",
            )
