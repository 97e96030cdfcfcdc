"""Messages: guesses, short values, faults that only follow from others."""

from __future__ import annotations

import pytest

from mloc_dagster.spec.faults import Fault, listing, nearest, shown, without_echoes


@pytest.mark.parametrize(
    ("word", "choices", "guess"),
    [
        ("identifer", ["identifier", "type"], "identifier"),
        ("maxTokens", ["max_tokens"], "max_tokens"),
        ("DEPENDS-ON", ["dependsOn", "depends_on"], "dependsOn"),
        ("frobnicate", ["identifier", "type"], None),
        ("x" * 200, ["x" * 199], None),
    ],
)
def test_nearest(word: str, choices: list[str], guess: str | None) -> None:
    assert nearest(word, choices) == guess


@pytest.mark.parametrize(("value", "text"), [(None, ""), (True, "true"), ("a", "'a'"), (3, "3")])
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_values_are_cut() -> None:
    assert len(shown("x" * 10_000)) == 80
    assert listing([str(number) for number in range(20)], limit=3) == "0, 1, 2 and 17 more"


def test_what_follows_from_another_fault_is_not_told() -> None:
    typo = Fault(2, 1, "spec.modl", "is not a key", "", "did you mean model?")
    missing = Fault(1, 1, "spec.model", "is missing, and taskType inference needs a model", "", "add it")
    other = Fault(3, 1, "spec.data", "is missing, and taskType inference needs data", "", "add it")
    assert without_echoes([missing, typo, other]) == [typo, other]


def test_the_same_typo_in_another_stage_hides_nothing() -> None:
    typo = Fault(2, 1, "spec.stages[0].modl", "is not a key", "", "did you mean model?")
    missing = Fault(9, 1, "spec.stages[1].model", "is missing", "", "add it")
    assert without_echoes([typo, missing]) == [typo, missing]
