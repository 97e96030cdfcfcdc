"""The JSON Schema: what the loader accepts it accepts, and most structural faults it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from mloc_dagster.spec import SpecError, load_file
from mloc_dagster.spec.schema import json_schema
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.tree import plain, read
from tests.spec.corpus import BAD, GOOD, SHIPPED, expected, name_of

_STRUCTURAL = re.compile(
    "is not a key|should be|must be a (map|list|number)|is not an? (task type|quantity|number of|version|amount|engine)"
)


def tree_of(file: Path) -> object:
    tree, _ = read(file.read_text("utf-8"))
    return plain(tree)


def is_structural(file: Path) -> bool:
    """Whether the file can be parsed and one of its faults is about keys or types."""
    _, faults = read(file.read_text("utf-8"))
    return not faults and any(_STRUCTURAL.search(what) for _, _, _, what, _ in expected(file))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json_schema())


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("file", [*GOOD, *SHIPPED], ids=name_of)
def test_what_the_loader_accepts_the_schema_accepts(validator: Draft202012Validator, file: Path) -> None:
    try:
        load_file(file)
    except SpecError as error:
        pytest.fail(str(error))
    assert [error.message for error in validator.iter_errors(tree_of(file))] == []


@pytest.mark.parametrize("file", [file for file in BAD if is_structural(file)], ids=name_of)
def test_structural_faults_are_refused(validator: Draft202012Validator, file: Path) -> None:
    assert not validator.is_valid(tree_of(file))


def test_every_key_of_every_dialect_can_be_completed() -> None:
    schema = json_schema()
    spec = schema["$defs"]["Spec"]["properties"]
    wanted = {"taskType", "stages", "graph", "workflow_config", "dependsOn", "hyperparameters", "dataset", "configName"}
    assert wanted | {"qdrant", "retrieval", "sloSeconds", "lora", "checkpoint"} <= set(spec)
    assert set(spec) <= set(schema["properties"])
    assert "lr_scheduler_type" in schema["$defs"]["Training"]["properties"]
    assert {"learning_rate", "tools", "vector_db", "top_p"} <= set(schema["$defs"]["Hyperparameters"]["properties"])


def test_task_types_are_named_with_what_they_do() -> None:
    task_type = json_schema()["$defs"]["StageSpec"]["properties"]["taskType"]
    assert set(known()) < set(task_type["enum"])


def test_every_section_and_every_key_is_described() -> None:
    definitions = json_schema()["$defs"]
    bare = [name for name, definition in definitions.items() if not definition.get("description")]
    assert bare == []
    own = {"Inference", "Training", "ModelSource", "Lora", "Data", "Gpu", "Destination", "Jsonl", "StageSpec"}
    silent = [
        f"{name}.{key}"
        for name in sorted(own)
        for key, value in definitions[name]["properties"].items()
        if value != {} and not value.get("description")
    ]
    assert silent == []
