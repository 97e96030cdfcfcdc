"""A task file for the rows of a stage that failed alone, beside them in the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import yaml

from mloc_dagster.files.atomic import write_json, write_text
from mloc_dagster.placement.local.inputs import Inputs
from mloc_dagster.plan.steps import Plan
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.references import ALTERNATIVES, BadReference, has_reference, resolve
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.results import read_envelope

_FILE = Path("artifacts") / "error_rows.yaml"
_OTHER_ROWS = ("data", "query", "task", "depends_on", "output")
"""What the stage says of its rows and of what surrounds it; the file has the rows that failed, and goes nowhere."""

Envelopes = Callable[[str], Mapping[str, Json]]


def add_rerun(plan: Plan, stage: Stage, given: Inputs, work: Path, final: Path) -> None:
    """Write the file and put the command that runs it into the result, when the stage set rows apart."""
    result = json.loads((work / "result.json").read_text("utf-8"))
    error_rows = result["payload"].get("error_rows")
    if not isinstance(error_rows, dict):
        return
    task = plan.task
    rows = {
        "type": "jsonl",
        "jsonl": {"path": str(final / Path(error_rows["path"]).relative_to(work)), "prompt_field": "prompt"},
        "metadata_columns": error_rows["metadata_columns"],
    }
    document = {
        "apiVersion": "mloc/v1",
        "metadata": {"name": f"{task.name}-{stage.name}-errors", "owner": task.owner, "project": task.project},
        "spec": {**_settings(stage, given), "data": rows},
    }
    write_text(work / _FILE, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    error_rows["rerun"] = f"mloc run {final / _FILE}"
    write_json(work / "result.json", result)


def _settings(stage: Stage, given: Inputs) -> dict[str, Json]:
    """What the stage reads, with the values that earlier stages gave it."""
    raw = {key: value for key, value in known()[stage.spec.task_type].part(stage.raw).items() if key not in _OTHER_ROWS}
    inference = raw.get("inference")
    if isinstance(inference, dict):
        raw["inference"] = {key: value for key, value in inference.items() if key != "prompts"}

    def envelope(name: str) -> Mapping[str, Json]:
        if name not in given.upstream:
            raise BadReference(f"there is no result of {name}")
        return read_envelope(given.upstream[name]).model_dump(mode="json")

    return _pinned(raw, envelope)


def _pinned(value: Json, envelopes: Envelopes) -> Json:
    """Replace references to results by what they name; those to the environment stay."""
    if isinstance(value, dict):
        return dict(_pinned_entries(value, envelopes))
    if isinstance(value, list):
        return [_pinned(item, envelopes) for item in value]
    return _named(resolve(value, envelopes, _Environment())) if has_reference(value) else value


def _pinned_entries(value: dict[str, Json], envelopes: Envelopes) -> Iterator[tuple[str, Json]]:
    for key, item in value.items():
        try:
            yield key, _pinned(item, envelopes)
        except BadReference:
            if key not in ALTERNATIVES:
                raise


class _Environment(Mapping[str, str]):
    """Gives each name back, marked, so that text which only looks like a reference is not taken for one."""

    def __getitem__(self, name: str) -> str:
        return f"\0{name}\1"

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _named(value: Json) -> Json:
    if isinstance(value, str):
        return value.replace("${", "$${").replace("\0", "${").replace("\1", "}")
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    return [_named(item) for item in value] if isinstance(value, list) else value
