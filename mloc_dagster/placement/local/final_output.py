"""`workflow_config.final_output`: one file with what the stages of a task gave, inside the results folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

from mloc_dagster.files.atomic import write_text
from mloc_dagster.placement.local.inputs import InputError
from mloc_dagster.placement.local.outcome import RunInfo, StepOutcome
from mloc_dagster.plan.compiler import final_stages
from mloc_dagster.plan.steps import Plan
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.references import BadReference, lookup, parse, whole
from mloc_dagster.spec.workflow import FinalOutput
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import RESPONSES, read_envelope


def write_final_output(plan: Plan, run: RunInfo) -> StepOutcome:
    """Write the file; raises InputError when a stage has no result here, or none of the shape that the format needs."""
    final = plan.task.workflow.final_output
    assert final is not None
    names = final.names or [final_stages(plan.task)[-1].name]
    values = {name: _value(name, run) for name in names}
    text = _text(final, next(iter(values.values())) if len(values) == 1 and not final.include else values)
    path = _place(plan, final, run.home)
    write_text(path, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    metadata: dict[str, Json] = {"path": str(path), "bytes": len(text.encode()), "stages": ", ".join(values)}
    return StepOutcome(metadata, digest, folder=path.parent)


def _value(name: str, run: RunInfo) -> Json:
    """The value that `stage` or `stage.result.path` names."""
    body = whole(name) or name.strip()

    def envelope(stage: str) -> dict[str, Json]:
        path = run.home.run_folder(run.task_id, stage) / RESPONSES
        try:
            return read_envelope(path).model_dump(mode="json")
        except (OSError, ValueError):
            raise InputError(f"final_output: stage {stage} has no result in this task; run the whole task") from None

    try:
        return lookup(parse(body if "." in body else f"{body}.result"), envelope, {})
    except BadReference as error:
        raise InputError(f"final_output: {error}") from None


def _text(final: FinalOutput, value: Json) -> str:
    if final.format == "json":
        return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    if not isinstance(value, list):
        kind = "several values" if final.include else type(value).__name__
        raise InputError(
            f"final_output.format {final.format} needs one list of rows, and source gives {kind}; "
            "write source: <stage>.result.items, or format: json"
        )
    if final.format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in value)
    return _csv([row if isinstance(row, dict) else {"value": row} for row in value])


def _csv(rows: list[dict[str, Json]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns)
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def _cell(value: Json) -> Json:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _place(plan: Plan, final: FinalOutput, home: Home) -> Path:
    logical = final.path or f"{plan.task.name}/final_output.{final.format}"
    path = home.resolve_inside(logical)
    return path if path.suffix else path / f"final_output.{final.format}"
