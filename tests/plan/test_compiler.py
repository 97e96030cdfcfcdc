"""From a task file to its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.plan import Plan, compile_plan
from mloc_dagster.plan.compiler import dataset_key, destination_of, model_key
from mloc_dagster.spec import load_text
from mloc_dagster.spec.data import Data
from mloc_dagster.spec.model import ModelSource

HEAD = "apiVersion: mloc/v1\nmetadata: {name: t}\nspec:\n"
TRAIN = """\
  taskType: sft
  model: {source: {identifier: org/base}}
  data: {dataset_name: org/rows}
"""


def plan_of(spec: str) -> Plan:
    return compile_plan(load_text(HEAD + spec, base=Path("/files")))


def needs(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {step.key: step.depends_on for step in plan.steps}


def test_a_source_that_several_stages_name_is_pulled_once() -> None:
    plan = plan_of(TRAIN + "  stages: [{name: a}, {name: b}, {name: c, model: {source: {revision: v2}}}]")
    assert needs(plan) == {
        "model/org/base": (),
        "dataset/org/rows": (),
        "t/a": ("model/org/base", "dataset/org/rows"),
        "t/b": ("model/org/base", "dataset/org/rows", "t/a"),
        "model/org/base@v2": (),
        "t/c": ("model/org/base@v2", "dataset/org/rows", "t/b"),
    }
    assert [step.kind for step in plan.steps] == ["model", "dataset", "stage", "stage", "model", "stage"]


def test_every_step_comes_after_what_it_needs() -> None:
    plan = plan_of(
        "  taskType: echo\n  echo: 1\n  graph:\n    nodes:\n"
        "      - {name: last, dependsOn: [left, right]}\n      - {name: left, dependsOn: [first]}\n"
        "      - {name: right, dependsOn: [first]}\n      - {name: first}\n"
    )
    keys = [step.key for step in plan.steps]
    for step in plan.steps:
        assert all(keys.index(needed) < keys.index(step.key) for needed in step.depends_on), step.key
    assert plan.stage_step("last").depends_on == ("t/left", "t/right")
    assert plan.by_key["t/first"].depends_on == ()


def test_what_a_reference_will_name_is_pulled_by_the_stage_itself() -> None:
    plan = plan_of("""\
  stages:
    - {name: a, taskType: echo, echo: {model: org/base, rows: org/rows}}
    - name: b
      taskType: sft
      model: {source: {identifier: "${a.result.echo.model}"}}
      data: {dataset_name: "${a.result.echo.rows}"}
""")
    assert needs(plan) == {"t/a": (), "t/b": ("t/a",)}


def test_a_reward_model_is_pulled_beside_the_model() -> None:
    plan = plan_of(
        "  taskType: ppo\n  model: {source: {identifier: org/base}}\n"
        "  reward_model: {identifier: org/judge}\n  data: {prompts: [a]}\n"
    )
    assert plan.stage_step("ppo").depends_on == ("model/org/base", "model/org/judge")
    assert plan.by_key["model/org/judge"].model == ModelSource(identifier="org/judge")


def test_the_models_of_a_retrieval_are_pulled_where_its_type_reads_them() -> None:
    plan = plan_of("""\
  query: [what?]
  rag: {embedding: org/embed, documents: {source: {path: ./n}}, search: {rerank_model: org/rank}}
  stages: [{name: index, taskType: rag_indexing}, {name: search, taskType: retrieval}]
""")
    assert needs(plan)["t/index"] == ("model/org/embed",)
    assert set(needs(plan)["t/search"]) >= {"model/org/embed", "model/org/rank"}


def test_weights_are_delivered_after_the_gate_on_them() -> None:
    plan = plan_of("""\
  stages:
    - name: tune
      taskType: sft
      model: {source: {identifier: org/base}}
      data: {prompts: [{prompt: a, response: b}]}
      output: {destination: {type: huggingface, repo_id: me/tuned}}
    - name: write
      taskType: inference
      data: {type: list, items: [a]}
      checkpoint: {load: {path: "${tune.result.final_model_path}"}}
      output: {destination: {type: local, path: out}}
    - name: judge
      taskType: evaluation
      evaluation:
        candidates: {tuned: "${write.result.items}"}
        reference: metadata.answer
        gate: {metric: exact_match, min: 1}
""")
    assert plan.by_key["published/t/tune"].depends_on == ("t/tune", "t/judge")
    assert plan.by_key["published/t/write"].depends_on == ("t/write",)
    assert [step.source for step in plan.steps if step.kind == "publish"] == ["huggingface me/tuned", "local out"]


BASE = "  taskType: echo\n  echo: 1\n  output: {destination: %s}\n  stages: %s\n"


@pytest.mark.parametrize(
    ("destination", "places"),
    [
        ("{type: local, path: /mnt/out/}", ["/mnt/out/a", "/mnt/out/b"]),
        ("{type: s3, bucket: models, prefix: team}", ["a", "b"]),
        ("{type: huggingface, repo_id: me/all, path: runs}", ["runs/a", "runs/b"]),
        ("{type: local}", [None, None]),  # each stays in its own run folder
        ("{type: http, url: 'http://127.0.0.1:9/in'}", [None, None]),  # told apart by their ids
    ],
)
def test_stages_with_one_place_do_not_replace_each_other(destination: str, places: list[str | None]) -> None:
    stages = load_text(HEAD + BASE % (destination, "[{name: a}, {name: b}]"), base=Path("/files")).stages
    found = [destination_of(stages, stage) for stage in stages]
    assert [target.path for target in found if target] == places


def test_the_same_place_is_seen_under_its_other_names() -> None:
    places = ("./out", "/mnt/out", "other")
    nodes = ", ".join(f"{{name: s{n}, output: {{destination: {{path: {place}}}}}}}" for n, place in enumerate(places))
    plan = plan_of(f"  taskType: echo\n  echo: 1\n  graph: {{nodes: [{nodes}]}}\n")
    published = {step.key: step.source for step in plan.steps if step.kind == "publish"}
    assert published == {
        "published/t/s0": "local ./out/s0",
        "published/t/s1": "local /mnt/out/s1",
        "published/t/s2": "local other",
    }


def test_no_step_shows_a_login() -> None:
    plan = plan_of("""\
  taskType: sft
  model: {source: {type: http, identifier: "https://me:hunter2@example.org/m.tar"}}
  data: {dataset_name: "https://me:hunter2@example.org/rows.jsonl"}
  output: {destination: {type: http, url: "https://me:hunter2@example.org/in"}}
""")
    assert not [step.source for step in plan.steps if "hunter2" in step.source or "hunter2" in step.key]
    assert plan.by_key["published/t/sft"].source == "http https://***@example.org/in"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/models/a/tiny", "/models/b/tiny"),  # two folders of one name
        ("https://one.example/m.tar", "https://two.example/m.tar"),
    ],
)
def test_files_of_one_name_have_different_keys(one: str, other: str) -> None:
    kind = "http" if "://" in one else "local"
    keys = {model_key(ModelSource(type=kind, identifier=name)) for name in (one, other)}
    assert len(keys) == 2 and len({key[:2] for key in keys}) == 1
    assert dataset_key(Data(url=one)) != dataset_key(Data(url=other))


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (Data(dataset_name="org/rows", revision="main"), ("dataset", "org", "rows")),
        (Data(dataset_name="org/rows", revision="a/b"), ("dataset", "org", "rows@a-b")),
        (Data(url="org/my rows"), ("dataset", "org", "my-rows")),
        (Data(dataset_name="${a.result.name}"), None),
        (Data.model_validate({"dataset_name": "org/rows", "jsonl": {"path": "/rows.jsonl"}}), None),
        (Data(), None),
    ],
)
def test_the_key_of_a_data_set(data: Data, key: tuple[str, ...] | None) -> None:
    assert dataset_key(data) == key
