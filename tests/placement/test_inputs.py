"""What a stage reads, and that every change of it is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mloc_dagster.placement.local.inputs import InputError, Inputs, gather, local_files
from mloc_dagster.placement.local.work import RunInfo
from mloc_dagster.plan import Plan
from mloc_dagster.store.home import Home
from tests.delivery.conftest import finished
from tests.placement.conftest import next_run, plan_of, run_all

USING = """\
  stages:
    - {name: a, taskType: echo, echo: {model: %s, rows: %s}}
    - name: b
      taskType: sft
      model: {source: {type: local, identifier: "${a.result.echo.model}"}}
      data: {url: "${a.result.echo.rows}"}
"""


def model(folder: Path, content: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(content)
    return folder


def given(plan: Plan, stage: str, info: RunInfo) -> Inputs:
    return gather(plan, next(s for s in plan.task.stages if s.name == stage), info.home, info.task_id)


def test_all_ancestors_are_given_with_their_digests(info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of("  taskType: echo\n  stages: [{name: a, echo: 1}, {name: b, echo: 2}, {name: c, echo: 3}]", tmp_path)
    run_all(plan, info)
    found = given(plan, "c", info)
    assert found.upstream == {name: info.home.run_folder("task-1", name) / "responses.json" for name in "ab"}
    written = json.loads(found.upstream["a"].read_text())["metadata"]["digest"]
    assert found.digests["stage:a"] == written and set(found.digests) == {"stage:a", "stage:b"}


def test_without_a_result_of_its_own_the_latest_of_the_task_counts(info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of("  taskType: echo\n  stages: [{name: a, echo: 1}, {name: b, echo: 2}]", tmp_path)
    with pytest.raises(InputError, match="stage a has no result yet; run it first, or run the whole task"):
        given(plan, "b", info)
    run_all(plan, info)
    later = next_run(info, 2)
    assert given(plan, "b", later).upstream["a"] == info.home.run_folder("task-1", "a") / "responses.json"


def test_another_task_is_found_by_its_name(info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of("  taskType: echo\n  dependsOn: [base]\n  echo: '${base.result.echo}'", tmp_path)
    with pytest.raises(InputError, match=r"spec.dependsOn names base, which has no successful result here; run base"):
        given(plan, "echo", info)
    run_all(plan_of("  taskType: echo\n  echo: 5", tmp_path, name="base"), info)
    assert given(plan, "echo", next_run(info, 2)).upstream["base"].parent == info.home.run_folder("task-1", "echo")


def test_a_damaged_result_is_told(info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of("  taskType: echo\n  stages: [{name: a, echo: 1}, {name: b, echo: 2}]", tmp_path)
    run_all(plan, info)
    (info.home.run_folder("task-1", "a") / "responses.json").write_text('{"task_id": ')
    with pytest.raises(InputError, match=r"the result of a in \S+ cannot be read: .*; run a with --fresh"):
        given(plan, "b", info)


def test_references_name_the_model_and_the_data(info: RunInfo, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    plan = plan_of(USING % (model(tmp_path / "m"), tmp_path / "rows.jsonl"), tmp_path)
    run_all(plan_of(USING.split("    - name: b")[0] % (tmp_path / "m", tmp_path / "rows.jsonl"), tmp_path), info)
    found = given(plan, "b", info)
    assert found.model and (found.model.path / "config.json").read_text() == "{}"
    assert found.data and found.data.path.name == "rows.jsonl"
    assert found.digests["model"] == found.model.digest and found.digests["data"] == found.data.digest
    model(tmp_path / "m", '{"changed": 1}')
    (tmp_path / "rows.jsonl").write_text("{}\n")
    again = given(plan, "b", info)
    assert again.digests["model"] != found.digests["model"] and again.digests["data"] != found.digests["data"]
    assert again.digests["stage:a"] == found.digests["stage:a"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (("[1, 2]", "x"), r"stage b: a reference gives no usable identifier: Input should be a valid string"),
        (("x", "{}"), r"stage b: a reference gives no usable url: Input should be a valid string"),
    ],
)
def test_a_reference_to_something_else_is_told(
    info: RunInfo, tmp_path: Path, values: tuple[str, str], why: str
) -> None:
    plan = plan_of(USING % values, tmp_path)
    run_all(plan_of(USING.split("    - name: b")[0] % values, tmp_path), info)
    with pytest.raises(InputError, match=why):
        given(plan, "b", info)


RETRIEVING = """\
  stages:
    - {name: a, taskType: echo, echo: {embedding: %s, reranker: %s, notes: %s}}
    - name: b
      taskType: rag
      rag:
        embedding: "${a.result.echo.embedding}"
        search: {rerank_model: "${a.result.echo.reranker}"}
        documents: {source: [{path: "${a.result.echo.notes}"}, {type: python_topics}]}
      query: [what?]
"""


def test_references_name_the_models_and_documents_of_a_retrieval(info: RunInfo, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("one")
    values = (model(tmp_path / "e"), model(tmp_path / "r", '{"cross": 1}'), tmp_path / "notes")
    plan = plan_of(RETRIEVING % values, tmp_path)
    run_all(plan_of(RETRIEVING.split("    - name: b")[0] % values, tmp_path), info)
    found = given(plan, "b", info)
    assert found.embedding and found.embedding.path == tmp_path / "e"
    assert found.reranker and found.reranker.path == tmp_path / "r"
    notes, topics = found.documents
    assert notes and notes.path == tmp_path / "notes" and topics is None
    for name, file in {"embedding": "e/config.json", "reranker": "r/config.json", "documents.0": "notes/a.md"}.items():
        (tmp_path / file).write_text("{ }")
        again = given(plan, "b", info)
        assert [key for key in found.digests if found.digests[key] != again.digests[key]] == [name]
        found = again


def test_a_reference_that_finds_nothing_is_told(info: RunInfo, tmp_path: Path) -> None:
    text = (USING % ("x", "y")).replace("echo.rows", "echo.lines")
    run_all(plan_of(text.split("    - name: b")[0], tmp_path), info)
    with pytest.raises(InputError, match=r"stage b: .*has no key 'lines'; it has model, rows"):
        given(plan_of(text, tmp_path), "b", info)


FILES = """\
  taskType: sft
  model: {source: {type: local, identifier: ./m}, adapters: [{path: ./adapter}, {url: "http://127.0.0.1:9/a.zip"}]}
  data: {jsonl: {path: ./rows.jsonl, prompt_field: p, response_field: r}}
  checkpoint: {load: {path: ./checkpoint}}
  training: {resume_from_path: "${HOME}/x"}
"""


def test_files_of_this_machine_count_by_their_content(info: RunInfo, tmp_path: Path) -> None:
    model(tmp_path / "m")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    plan = plan_of(FILES, tmp_path)
    assert dict(local_files(plan.task.stages[0].raw)) == {
        "data.jsonl.path": tmp_path / "rows.jsonl",
        "checkpoint.load.path": tmp_path / "checkpoint",
        "model.adapters.0.path": tmp_path / "adapter",
    }
    first = given(plan, "sft", info).digests
    assert first["checkpoint.load.path"] == "absent"
    model(tmp_path / "checkpoint")
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    second = given(plan, "sft", info).digests
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"checkpoint.load.path", "data.jsonl.path"}


def test_a_result_without_a_digest_counts_by_its_id(own_home: Home, info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of("  taskType: echo\n  stages: [{name: a, echo: 1}, {name: b, echo: 2}]", tmp_path)
    finished(own_home, "by hand", task="task-1", stage="a")
    assert given(plan, "b", info).digests == {"stage:a": "task-1/a"}
