"""validate, plan, schema, init, doctor: a user's mistake is a message and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from mloc_dagster import __version__
from mloc_dagster.cli.starters import starters
from mloc_dagster.spec import load_file
from tests.cli.conftest import ECHO, Mloc, write

BAD = "apiVersion: mloc/v1\nspec:\n  taskType: ecko\n  sloSecond: 3\n"


def test_validate_tells_every_fault_of_every_file(mloc: Mloc) -> None:
    write(mloc.folder / "good.yaml")
    (mloc.folder / "sub").mkdir()
    (mloc.folder / "sub" / "bad.yml").write_text(BAD)
    answer = mloc("validate", ".")
    assert answer.code == 2
    assert "ok good.yaml: good, 2 stage(s): first (echo), second (echo)" in answer.out
    told = answer.errors.splitlines()
    assert told[0].startswith("sub/bad.yml:3:13 spec.taskType: is not a task type (found 'ecko'); did you mean echo?")
    assert told[1].startswith("sub/bad.yml:4:3 spec.sloSecond:") and "sloSeconds" in told[1]
    assert told[2] == "2 faults; nothing was run"
    assert not mloc.home.root.exists()


def test_validate_for_programs(mloc: Mloc) -> None:
    write(mloc.folder / "a.yaml")
    (mloc.folder / "b.yaml").write_text(BAD)
    answer = mloc("validate", "--json", "a.yaml", "b.yaml")
    good, bad = json.loads(answer.out)
    assert answer.code == 2 and (good["ok"], bad["ok"]) == (True, False)
    assert [(fault["line"], fault["column"], fault["path"]) for fault in bad["faults"]] == [
        (3, 13, "spec.taskType"),
        (4, 3, "spec.sloSecond"),
    ]
    assert mloc("validate", "--json", "a.yaml").code == 0


def test_warnings_are_on_the_error_stream_and_no_fault(mloc: Mloc) -> None:
    (mloc.folder / "a.yaml").write_text("apiVersion: mloc/v1\nspec: {taskType: echo, echo: 1, training: {seed: 3}}\n")
    answer = mloc("validate", "a.yaml")
    assert answer.code == 0 and "warning: " in answer.errors and "training.seed" in answer.errors
    assert answer.out.startswith("ok a.yaml")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["validate", "none.yaml"], "none.yaml: the file cannot be read"),
        (["validate", "empty"], "no task file found"),
        (["plan", "empty"], "empty: the file cannot be read"),
        (["plan", "file.yaml", "--on", "gpu"], "--on gpu: not a place"),
        (["run", "none.yaml"], "none.yaml: the file cannot be read"),
        (["run"], "Missing argument 'FILE'"),
        (["init", "ehco"], "did you mean echo?"),
        (["init", "zzzzzz"], "there are "),
        (["init", "echo", "--out", "file.yaml"], "file.yaml is there already"),
        (["init", "echo", "--out", "empty", "--force"], "empty cannot be written"),
        (["init", "echo", "--out", "file.yaml/x.yaml"], "cannot be written"),
        (["--home", "file.yaml", "list"], "file.yaml cannot hold the state: Not a directory"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_have_exit_code_2_and_a_way_out(mloc: Mloc, arguments: list[str], what: str) -> None:
    text = write(mloc.folder / "file.yaml").read_text()
    (mloc.folder / "empty").mkdir()
    answer = mloc(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert what in answer.errors
    assert (mloc.folder / "file.yaml").read_text() == text and not mloc.home.results.exists()


@pytest.mark.parametrize(
    ("place", "text", "what"),
    [
        ("relative", None, "must be an absolute path"),
        ("{folder}/none", None, "does not exist"),
        ("{folder}/there", "run_launcher: [\n", "while parsing"),
        ("{folder}/there", "nonsense: 1\n", 'unexpected config entry "nonsense"'),
    ],
)
def test_a_dagster_home_that_cannot_be_used(mloc: Mloc, place: str, text: str | None, what: str) -> None:
    if text:
        (mloc.folder / "there").mkdir()
        (mloc.folder / "there" / "dagster.yaml").write_text(text)
    answer = mloc("list", DAGSTER_HOME=place.format(folder=mloc.folder))
    assert answer.code == 2 and "Dagster cannot be opened" in answer.errors and what in answer.errors


def test_plan_shows_the_steps_and_starts_nothing(mloc: Mloc) -> None:
    file = write(mloc.folder / "two.yaml", ECHO + "  output: {{destination: {{type: local, path: out}}}}\n")
    answer = mloc("plan", "--json", str(file))
    told = json.loads(answer.out)
    assert answer.code == 0 and (told["task"], told["owner"], told["project"]) == ("two", "alice", "demo")
    assert {step["key"]: tuple(step["depends_on"]) for step in told["steps"]} == {
        "two/first": (),
        "two/second": ("two/first",),
        "published/two/first": ("two/first",),
        "published/two/second": ("two/second",),
    }
    table = mloc("plan", str(file)).out
    assert "two (project demo, owner alice)" in table and "published/two/second: to local out/second" in table
    assert not mloc.home.root.exists()


def test_the_schema_is_one_and_knows_a_good_file_from_a_bad_one(mloc: Mloc) -> None:
    answer = mloc("schema")
    schema = json.loads(answer.out)
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    good = yaml.safe_load(write(mloc.folder / "good.yaml").read_text())
    assert not list(validator(schema).iter_errors(good)) and answer.code == 0
    assert list(validator(schema).iter_errors({**good, "spec": {**good["spec"], "retry": 3}}))


def test_init_writes_a_file_that_is_valid(mloc: Mloc) -> None:
    answer = mloc("init", "echo", "--out", "new/task.yaml")
    assert answer.code == 0 and answer.out == (
        "wrote new/task.yaml; next: mloc validate new/task.yaml, then mloc run new/task.yaml\n"
    )
    assert [stage.spec.task_type for stage in load_file(mloc.folder / "new" / "task.yaml").stages] == ["echo"]
    (mloc.folder / "new" / "task.yaml").write_text("mine")
    assert mloc("init", "echo", "--out", "new/task.yaml", "--force").code == 0
    assert (mloc.folder / "new" / "task.yaml").read_text() == starters()["echo"].read_text()


def test_doctor_tells_what_is_here(mloc: Mloc) -> None:
    told = json.loads(mloc("doctor", "--json").out)
    assert told["home"] == str(mloc.home.root) and told["machine"]["cpu"] >= 1 and told["machine"]["memory"] > 1 << 28
    assert told["extras"]["core"]["dagster"].startswith("1.") and told["task_types"]["echo"] is True
    assert set(told["extras"]) >= {"core", "inference", "training", "s3"}
    shown = mloc("doctor").out
    assert str(mloc.home.root) in shown and "task types:" in shown
    missing = any(version is None for libraries in told["extras"].values() for version in libraries.values())
    assert ("pip install 'mloc-dagster[" in shown) is missing


def test_the_version_and_the_home_of_the_environment(mloc: Mloc, tmp_path: Path) -> None:
    assert mloc("--version").out == f"mloc {__version__}\n"
    told = json.loads(mloc("doctor", "--json", MLOC_HOME=str(tmp_path / "other")).out)
    assert told["home"] == str(tmp_path / "other")
