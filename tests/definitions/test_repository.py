"""The lazy repository."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import dagster
import pytest
from dagster import AssetKey
from dagster._core.errors import DagsterInvalidDefinitionError
from dagster._core.remote_representation.external_data import RepositorySnap

from mloc_dagster.definitions.repository import TaskFiles
from mloc_dagster.definitions.submit import store_spec
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import ROOT, write

SHARED = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: alice, project: {project}}}
spec:
  taskType: inference
  model: {{source: {{type: huggingface, identifier: org/shared-7B}}}}
  data: {{type: list, items: [hello]}}
"""


def repository_of(files: TaskFiles) -> dagster.RepositoryDefinition:
    """Return a real repository over the files."""

    @dagster.repository(name="mloc")
    def mloc() -> TaskFiles:
        return files

    return mloc


@pytest.fixture
def files(home: Home, workspace: Path) -> TaskFiles:
    """The repository data of an empty workspace."""
    return TaskFiles(workspace, home)


def test_a_job_is_built_from_its_own_file_alone(
    files: TaskFiles, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(workspace / "good.yaml")
    (workspace / "broken.yaml").write_text("]")
    job = files.get_job("good")
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == {"good/first", "good/second"}
    assert not caplog.records


def test_a_bad_file_fails_its_own_job_and_is_left_out_of_the_list(
    files: TaskFiles, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(workspace / "good.yaml")
    write(workspace / "bad.yaml", "apiVersion: mloc/v1\nspec: {{taskType: ecko, echo: 1}}\n")
    with pytest.raises(DagsterInvalidDefinitionError, match=r"bad\.yaml:2:\d+ .*echo"):
        files.get_job("bad")
    with caplog.at_level(logging.WARNING, "mloc"):
        snapshot = RepositorySnap.from_def(repository_of(files), defer_snapshots=True)
    assert [ref.name for ref in snapshot.get_job_refs()] == ["good"]
    assert len([record for record in caplog.records if "bad.yaml" in record.getMessage()]) == 1


def test_an_unknown_job_says_what_to_do(files: TaskFiles) -> None:
    assert not files.has_job("nothing")
    with pytest.raises(DagsterInvalidDefinitionError, match="no task file for job nothing; write one"):
        files.get_job("nothing")


def test_a_shared_model_is_one_asset_of_all_jobs_that_use_it(files: TaskFiles, workspace: Path) -> None:
    write(workspace / "one.yaml", SHARED, project="red")
    write(workspace / "two.yaml", SHARED, project="blue")
    snapshot = RepositorySnap.from_def(repository_of(files), defer_snapshots=True)
    nodes = {node.asset_key: node for node in snapshot.asset_nodes}
    model = AssetKey(["model", "org", "shared-7B"])
    assert nodes[model].job_names == ["one", "two"] and nodes[model].group_name == "models"
    for name, group in (("one", "red"), ("two", "blue")):
        stage = nodes[AssetKey([name, "inference"])]
        assert [edge.parent_asset_key for edge in stage.parent_edges] == [model]
        assert stage.group_name == group and stage.owners == ["team:alice"]


def test_a_task_submitted_again_shows_the_newest_version(files: TaskFiles, home: Home, tmp_path: Path) -> None:
    path = write(tmp_path / "task.yaml")
    old = store_spec(home, load_file(path))
    path.write_text(path.read_text().replace("dependsOn: [first], ", "").replace("second", "other"))
    new = store_spec(home, load_file(path))
    snapshot = RepositorySnap.from_def(repository_of(files), defer_snapshots=True)
    nodes = {node.asset_key: node for node in snapshot.asset_nodes}
    assert old != new and nodes[AssetKey(["task", "first"])].job_names == sorted([old, new])
    assert set(nodes) == {AssetKey(["task", name]) for name in ("first", "second", "other")}


def test_jobs_of_files_that_came_or_changed_later_are_found(files: TaskFiles, home: Home, workspace: Path) -> None:
    repository = repository_of(files)
    write(workspace / "early.yaml")
    RepositorySnap.from_def(repository, defer_snapshots=True)
    late = write(workspace / "late.yaml", name="late")
    submitted = store_spec(home, load_file(late))
    assert len(repository.get_job("late").nodes) == len(repository.get_job(submitted).nodes) == 2
    late.write_text(
        late.read_text().replace("    - {name: second, dependsOn: [first], spec: {echo: {text: two}}}\n", "")
    )
    assert len(repository.get_job("late").nodes) == 1
    assert [job.name for job in repository.get_all_jobs()] == ["early"]


def test_stages_that_differ_only_in_punctuation_make_a_job(files: TaskFiles, workspace: Path) -> None:
    path = write(workspace / "punctuation.yaml")
    path.write_text(path.read_text().replace("first", "a-b").replace("second", "a_b"))
    assert len(files.get_job("punctuation").nodes) == 2


def test_importing_the_definitions_loads_nothing_heavy(home: Home) -> None:
    script = (
        "import json, sys, mloc_dagster.definitions as d; d.mloc.get_all_jobs(); "
        "print(json.dumps([n for n in ('torch', 'transformers', 'datasets', 'vllm', 'trl', 'peft', 'huggingface_hub', "
        "'numpy', 'pandas') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_one_of_a_thousand_jobs_is_there_in_under_100_ms(home: Home, workspace: Path) -> None:
    for number in range(1000):
        write(workspace / f"group-{number % 10}" / f"task-{number}.yaml")
    script = (
        "import time, mloc_dagster.definitions; from mloc_dagster.definitions.repository import TaskFiles\n"
        "begun = time.process_time(); TaskFiles.of_environment().get_job('group_7__task_997')\n"
        "print(time.process_time() - begun)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1
