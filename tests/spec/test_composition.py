"""Stages and graphs: order, dependencies, the merge over the base."""

from __future__ import annotations

import pytest

from mloc_dagster.spec import SpecError, TaskFile, load_text
from mloc_dagster.spec.load import MAX_STAGES

HEAD = "apiVersion: mloc/v1\nmetadata: {name: t}\nspec:\n"


def load(spec: str) -> TaskFile:
    return load_text(HEAD + spec)


def parents(task: TaskFile) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.depends_on for stage in task.stages}


@pytest.mark.parametrize("key", ["dependsOn", "dependencies", "depends_on"])
def test_a_stage_depends_on_the_one_before_unless_it_says_otherwise(key: str) -> None:
    task = load(f"""
  taskType: echo
  stages:
    - name: a
    - id: b
    - {{name: c, {key}: [a]}}
    - {{name: d, {key}: []}}
    - {{name: e, {key}: null}}
    - {{name: f, {key}: a}}
    - {{name: g, spec: {{{key}: [a, b]}}}}
""")
    assert parents(task) == {
        "a": (), "b": ("a",), "c": ("a",), "d": (), "e": ("d",), "f": ("a",), "g": ("a", "b"),
    }  # fmt: skip
    assert task.ancestors("g") == {"a", "b"}


def test_graph_nodes_have_no_implicit_parent() -> None:
    task = load("  taskType: echo\n  graph: {nodes: [{name: a}, {name: b}, {id: c, dependencies: [a, b]}]}\n")
    assert parents(task) == {"a": (), "b": (), "c": ("a", "b")}


def test_stages_come_after_what_they_depend_on() -> None:
    task = load("  taskType: echo\n  graph: {nodes: [{name: last, dependsOn: [first]}, {name: first}]}\n")
    assert [stage.name for stage in task.stages] == ["first", "last"]


def test_a_stage_goes_over_the_base() -> None:
    task = load("""
  taskType: sft
  model: {source: {identifier: base/model, revision: v1}, config: {bf16: true}}
  data: {dataset_name: org/d, split: "train[:10]"}
  training: {learning_rate: 1e-5, seed: 7}
  lora: {target_modules: [a, b]}
  stages:
    - name: look
      spec:
        taskType: inference
        data: {type: list, items: [x], dataset_name: null}
    - name: train
      training: {seed: 8}
      taskType: lora_sft
      lora: {target_modules: [c]}
      model: {source: {revision: v2}}
""")
    look, train = (stage.spec for stage in task.stages)
    assert (look.task_type, train.task_type) == ("inference", "lora_sft")
    assert look.data.dataset_name is None and train.data.dataset_name == "org/d"
    assert (train.training.learning_rate, train.training.seed) == (1e-5, 8)
    assert train.lora and train.lora.target_modules == ["c"]
    assert train.model.source and train.model.source.identifier == "base/model"
    assert train.model.source.revision == "v2"
    assert train.model.config.bf16 is True


def test_null_in_a_stage_takes_back_what_the_base_says() -> None:
    task = load("""
  taskType: inference
  model: {source: {identifier: org/m}}
  query: q
  checkpoint: {load: {taskId: earlier}}
  inference: {temperature: 0.1, top_k: 5}
  stages:
    - {name: with}
    - {name: without, checkpoint: null, inference: {temperature: null}}
""")
    first, second = (stage.spec for stage in task.stages)
    assert first.checkpoint.load is not None
    assert second.checkpoint.load is None
    assert (second.inference.temperature, second.inference.top_k) == (0.7, 5)
    assert "checkpoint" not in task.stage("without").raw


def test_spelling_does_not_matter_to_the_merge() -> None:
    task = load("""
  taskType: inference
  model: org/m
  query: q
  inference: {max_tokens: 5, systemPrompt: base}
  stages: [{name: a, inference: {max_new_tokens: 9, system_prompt: own}}]
""")
    assert (task.stages[0].spec.inference.max_tokens, task.stages[0].spec.inference.system_prompt) == (9, "own")


def test_inline_keys_and_an_inner_spec_may_be_mixed() -> None:
    task = load("  stages: [{name: a, taskType: echo, spec: {echo: 5}}]\n")
    assert task.stages[0].spec.echo == 5


def test_a_single_task_is_named_after_its_type_and_may_need_other_tasks() -> None:
    task = load("  taskType: echo\n  dependsOn: [other, 12]\n  echo: ${other.result.echo}\n")
    assert (task.stages[0].name, task.requires) == ("echo", ("other", "12"))


def test_other_tasks_may_stand_beside_stages() -> None:
    task = load("  taskType: echo\n  dependsOn: other\n  stages: [{name: a, echo: '${other.result.x}'}]\n")
    assert (parents(task), task.requires) == ({"a": ()}, ("other",))


def test_the_name_of_a_file_that_has_none() -> None:
    assert load_text("taskType: echo", name="my task!").name == "my-task"


@pytest.mark.parametrize(
    ("base", "count", "limit"),
    [(1, MAX_STAGES + 1, f"{MAX_STAGES} stages"), (2000, 200, "values in all its stages together")],
)
def test_the_merge_is_bounded(base: int, count: int, limit: str) -> None:
    stages = "".join(f"    - {{name: s{number}}}\n" for number in range(count))
    with pytest.raises(SpecError, match=limit):
        load(f"  taskType: echo\n  echo: {list(range(base))}\n  stages:\n{stages}")
