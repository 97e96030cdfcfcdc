"""Every shipped task file is valid, says nothing that is not used, and plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.spec.task_types import BUILT_IN
from tests.mirror import DATASETS, TASK_SPECS, hub_ids

FILES = sorted(TASK_SPECS.rglob("*.y*ml"))
CHOSEN = {"message", "numbers", "category", "prompt_id", "topic", "question", "small", "larger", "before", "after"}
"""Names in the templates that belong to the data, not to the language."""


def name_of(file: Path) -> str:
    """Return a file's place below task_specs, for a test id."""
    return str(file.relative_to(TASK_SPECS))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_valid_and_planned(file: Path) -> None:
    task = load_file(file)
    assert [str(warning) for warning in task.warnings] == []
    steps = {step.key: step for step in compile_plan(task).steps}
    planned = {step.stage.name for step in steps.values() if step.kind == "stage" and step.stage}
    assert planned == {stage.name for stage in task.stages}
    assert all(parent in steps for step in steps.values() for parent in step.depends_on)


def test_task_names_are_unique() -> None:
    names = [load_file(file).name for file in FILES]
    assert sorted(set(names)) == sorted(names)


def test_a_template_for_each_task_type() -> None:
    templates = {file.stem for file in (TASK_SPECS / "templates").glob("*.yaml")}
    assert set(BUILT_IN) <= templates


def test_every_setting_of_the_templates_is_explained() -> None:
    """A key with a value has a comment beside it, in its own template or in another one."""
    explained, written = set[str](), set[str]()
    for file in (TASK_SPECS / "templates").glob("*.yaml"):
        for line in file.read_text("utf-8").splitlines():
            key, colon, rest = line.strip().removeprefix("- ").partition(":")
            value, mark, _ = rest.partition(" # ")
            if mark:
                explained.add(key)
            elif colon and key.isidentifier() and value.strip():
                written.add(key)
    assert written - explained <= CHOSEN


def test_mirror_has_every_data_set() -> None:
    _, datasets = hub_ids(FILES)
    assert set(datasets) <= set(DATASETS)
