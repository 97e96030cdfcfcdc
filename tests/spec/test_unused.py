"""Warnings: nothing that a file says is silently dropped."""

from __future__ import annotations

import pytest

from mloc_dagster.spec import Fault, load_file, load_text
from tests.spec.corpus import HERE

HEAD = "apiVersion: mloc/v1\nmetadata: {name: t}\nspec:\n"
INFERENCE = "  taskType: inference\n  model: m/m\n  query: q\n"


def warnings(spec: str) -> list[tuple[int, str, str]]:
    return [(w.line, w.path, w.what) for w in load_text(HEAD + spec).warnings]


def test_an_unused_key_is_named_at_its_place() -> None:
    assert warnings("  taskType: echo\n  echo: 1\n  training:\n    seed: 3\n") == [
        (7, "spec.training.seed", "is not used by taskType echo")
    ]


def test_a_key_that_one_of_the_stages_uses_is_used() -> None:
    spec = """
  lora: {r: 4}
  model: org/m
  stages:
    - {name: a, taskType: inference, query: q}
    - {name: b, taskType: lora_sft, data: {dataset_name: org/d}}
"""
    assert warnings(spec) == []


def test_trainer_arguments_that_pass_through_are_used() -> None:
    assert warnings("  taskType: sft\n  model: m/m\n  data: {prompts: [a]}\n  training: {adam_beta2: 0.9}\n") == []


def test_every_key_of_unused_sections_is_named() -> None:
    file = HERE / "good" / "every_section.yaml"
    told = {warning.path for warning in load_file(file).warnings}
    for path in ("spec.reward_model.scale", "spec.rag.search.top_k", "spec.configName", "spec.training.ppo_epochs"):
        assert path in told
    assert all(warning.file == str(file) and warning.line > 0 for warning in load_file(file).warnings)


@pytest.mark.parametrize(
    ("spec", "line", "path", "says"),
    [
        (f"{INFERENCE}  parallel: {{enabled: true}}\n  resources: {{replicas: 9}}\n", 8, "spec.resources.replicas",
         "is more than parallel.max_shards 8, which holds"),
        (f"{INFERENCE}  resources: {{replicas: 2}}\n", 7, "spec.resources.replicas", "runs as one replica"),
        ("  taskType: echo\n  resources: {replicas: 2}\n", 5, "spec.resources.replicas", "runs as one replica"),
        ("  taskType: echo\n\n  workflow_config: {shared_storage: {base_path: /x}}\n", 6,
         "spec.workflow_config.shared_storage", "is not used: stages hand over their results by reference"),
        ("  taskType: echo\n  output: {destination: {url: 'http://x', headers: {Authorization: Bearer abc}}}\n",
         5, "spec.output.destination.headers.Authorization", "looks like a secret written into the file"),
        ("  taskType: inference\n  model: m/m\n  data: {type: list, items: [a], url: org/d}\n", 6, "spec.data.url",
         "is not read, because data.items is given and goes first"),
        ("  taskType: inference\n  model: m/m\n  query: q\n  inference: {prompts: [a]}\n", 6, "spec.query",
         "is not read, because inference.prompts is given and goes first"),
        ("  taskType: sft\n  model: m/m\n  data: {dataset_name: a/b, jsonl: {path: x.jsonl}}\n", 6,
         "spec.data.dataset_name", "is not read, because data.jsonl is given and goes first"),
    ],
)  # fmt: skip
def test_notices(spec: str, line: int, path: str, says: str) -> None:
    assert warnings(spec) == [(line, path, says)]


@pytest.mark.parametrize(
    "spec",
    [
        f"{INFERENCE}  parallel: {{enabled: false}}\n",
        f"{INFERENCE}  parallel: {{enabled: true}}\n  resources: {{replicas: 3}}\n",
        "  taskType: sft\n  model: m/m\n  data: {prompts: [a]}\n  resources: {replicas: 2}\n",
        "  taskType: inference\n  model: m/m\n  query: q\n  inference: {max_tokens: 4}\n",
        "  taskType: echo\n  output: {destination: {type: http, url: 'http://x', headers: {Authorization: '${T}'}}}\n",
        "  taskType: echo\n  workflow_config: {}\n",
    ],
)
def test_nothing_to_say(spec: str) -> None:
    assert warnings(spec) == []


def test_a_stage_name_alone_is_an_environment_variable() -> None:
    spec = "  taskType: echo\n  stages: [{name: a}, {name: b, echo: '${a}'}]\n"
    ((line, path, what),) = warnings(spec)
    assert (line, path) == (5, "spec.stages[1].echo")
    assert what == "${a} is an environment variable, not the stage of that name"


def test_warnings_stand_in_the_order_of_the_file() -> None:
    told = load_file(HERE / "good" / "every_section.yaml").warnings
    assert list(told) == sorted(told)
    assert isinstance(told[0], Fault)
