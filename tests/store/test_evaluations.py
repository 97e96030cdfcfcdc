"""Verdicts by weights and gate, found by every run and rebuilt from results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mloc_dagster.store.evaluations import Evaluations, Verdict, weights_key
from mloc_dagster.store.home import Home
from mloc_dagster.store.publications import Publication, Publications
from mloc_dagster.store.results import Envelope, write_envelope

WEIGHTS = ("sha256:base", "sha256:adapter")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def verdict(**more: object) -> Verdict:
    """A passed verdict, with some fields replaced."""
    return Verdict.model_validate(
        {
            "gate": "task/judge", "rule": {"metric": "f1", "min": 0.5}, "metric": "f1", "value": 0.6, "passed": True,
            "reason": "f1 0.6, within min 0.5", "weights": WEIGHTS, "result": "id/judge",
            "judged_at": "2026-01-02T00:00:00+00:00", **more,
        }
    )  # fmt: skip


def test_a_verdict_is_found_by_exactly_its_weights(home: Home) -> None:
    found = Evaluations(home)
    found.record(verdict())
    assert found.of(WEIGHTS) == (verdict(),)
    assert found.by("task/judge", WEIGHTS) == verdict() and found.by("task/other", WEIGHTS) is None
    for others in ((), WEIGHTS[:1], WEIGHTS[1:], WEIGHTS[::-1], (*WEIGHTS, "sha256:more")):
        assert found.of(others) == ()


def test_the_newest_verdict_of_a_gate_counts(home: Home) -> None:
    found = Evaluations(home)
    newer = verdict(passed=False, judged_at="2026-01-03T00:00:00+00:00")
    for one in (verdict(), newer, verdict(judged_at="2026-01-01T00:00:00+00:00")):
        found.record(one)
    found.record(verdict(gate="task/second"))
    assert found.by("task/judge", WEIGHTS) == newer
    assert [one.gate for one in found.of(WEIGHTS)] == ["task/judge", "task/second"]


def test_a_verdict_on_unknown_weights_vouches_for_none(home: Home) -> None:
    found = Evaluations(home)
    found.record(verdict(weights=()))
    assert found.of(()) == ()


def test_a_damaged_file_is_no_verdict(home: Home) -> None:
    found = Evaluations(home)
    found.record(verdict())
    (path,) = (home.index / "evaluations").rglob("*.json")
    assert path.parent.parent.name == weights_key(WEIGHTS)
    path.write_text('{"passed": true}', "utf-8")
    assert found.of(WEIGHTS) == ()
    found.record(verdict())
    assert found.of(WEIGHTS) == (verdict(),)


def test_lost_verdicts_come_back_from_the_results(home: Home) -> None:
    newer = verdict(passed=False, judged_at="2026-01-03T00:00:00+00:00")
    for task, one in (("a", newer), ("b", verdict())):
        metadata = {"gate": one.model_dump(mode="json")}
        envelope = Envelope(task_id=task, stage="judge", worker="w", metadata=metadata, received_at="", result={})
        write_envelope(home.run_folder(task, "judge"), envelope)
    plain = Envelope(task_id="c", stage="s", worker="w", metadata={}, received_at="", result={})
    write_envelope(home.run_folder("c", "s"), plain)
    (home.results / "d" / "s").mkdir(parents=True)
    (home.results / "d" / "s" / "responses.json").write_text("{", "utf-8")
    assert Evaluations(home).of(WEIGHTS) == (newer,)
    shutil.rmtree(home.index)
    assert Evaluations(home).rebuild() == 2
    assert Evaluations(home).of(WEIGHTS) == (newer,)


def test_the_last_publication_of_a_stage(home: Home) -> None:
    found = Publications(home)
    assert found.latest("task/train") is None
    first = Publication(
        stage="task/train", weights=WEIGHTS, result="a/train", delivered_to="x", published_at="2026-01-01"
    )
    second = first.model_copy(update={"result": "b/train"})
    found.record(first)
    found.record(second)
    assert found.latest("task/train") == second and found.latest("task/other") is None
