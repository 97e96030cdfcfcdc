"""Equal digests exactly where the same work would give the same result."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from mloc_dagster.plan import digest as digests
from mloc_dagster.plan.digest import stage_digest
from mloc_dagster.spec import load_text
from mloc_dagster.spec.taskfile import Stage

HEAD = "apiVersion: mloc/v1\nmetadata: {name: %s}\nspec:\n  taskType: inference\n"
REST = "  model: {source: {identifier: org/base}}\n  data: {type: list, items: [a]}\n"


def stage_of(more: str = "", name: str = "t", folder: str = "/files") -> Stage:
    return load_text(HEAD % name + REST + more, base=Path(folder)).stages[0]


def digest_of(more: str = "", **where: str) -> str:
    return stage_digest(stage_of(more, **where), {"model": "sha256:1"}, on_cpu=True)


@pytest.mark.parametrize(
    "more",
    [
        "  # a remark\n",
        "  resources: {hardware: {gpu: {count: 0}, cpu: 2}}\n",
        "  retry: {max_retries: 1}\n",
        "  output: {destination: {type: local, path: x}}\n",
        "  sloSeconds: 9\n  timeoutSeconds: 99\n",
        "  parallel: {enabled: true, max_shards: 2}\n",
        "  mirror: file:///mirror\n",
        "  rag: {chunk_size: 300}\n",
        "  training: {max_steps: 3}\n",
    ],
)
def test_what_does_not_change_the_result_does_not_change_the_digest(more: str) -> None:
    assert digest_of(more) == digest_of()


def test_neither_do_the_names_of_task_and_folder() -> None:
    assert digest_of(name="other", folder="/elsewhere") == digest_of()


@pytest.mark.parametrize(
    "more",
    [
        "  inference: {max_tokens: 7}\n",
        "  inference: {temperature: 0}\n",
        "  enforce_cpu: true\n",
        "  postprocess: {jsonl_export: {path: a.jsonl, fields: {p: prompt}}}\n",
        "  checkpoint: {load: {path: /weights}}\n",
    ],
)
def test_what_changes_the_result_changes_the_digest(more: str) -> None:
    assert digest_of(more) != digest_of()


def test_every_input_counts_and_their_order_does_not() -> None:
    stage = stage_of()
    one = stage_digest(stage, {"model": "1", "data": "2"}, True)
    assert one == stage_digest(stage, {"data": "2", "model": "1"}, True)
    others = [{"model": "1"}, {"model": "2", "data": "1"}, {"model": "1", "data": "2", "stage:a": "3"}]
    assert one not in [stage_digest(stage, inputs, True) for inputs in others]


def test_the_device_the_code_and_the_libraries_count(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of()
    before = stage_digest(stage, {}, on_cpu=True)
    assert stage_digest(stage, {}, on_cpu=False) != before
    with monkeypatch.context() as patched:
        patched.setattr(digests, "CODE_VERSION", "next")
        assert stage_digest(stage, {}, on_cpu=True) != before
    version = metadata.version
    for package, counts in (("transformers", True), ("rich", False)):
        with monkeypatch.context() as patched:
            newer = lambda name, package=package: "99" if name == package else version(name)  # noqa: E731
            patched.setattr(digests, "version", newer)
            assert (stage_digest(stage, {}, on_cpu=True) != before) is counts, package


def test_a_gate_judges_and_changes_nothing() -> None:
    text = (
        "apiVersion: mloc/v1\nspec:\n  stages:\n"
        "    - {name: a, taskType: inference, model: {source: {identifier: o/b}}, data: {type: list, items: [x]}}\n"
        "    - name: e\n      taskType: evaluation\n"
        "      evaluation: {candidates: {a: '${a.result.items}'}, reference: metadata.answer%s}\n"
    )
    gates = ("", ", gate: {metric: exact_match, min: 0.5}", ", metrics: [f1]")
    plain, gated, other = (
        stage_digest(load_text(text % gate, base=Path("/files")).stages[1], {}, True) for gate in gates
    )
    assert gated == plain and other != plain


def test_no_secret_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = "apiVersion: mloc/v1\nspec: {taskType: echo, echo: 'is ${KEY}'}\n"
    found = set()
    for value in ("one", "two"):
        monkeypatch.setenv("KEY", value)
        found.add(stage_digest(load_text(echo, base=Path("/files")).stages[0], {}, True))
    assert len(found) == 1
