"""Metrics of one output against references, on values worked out by hand."""

from __future__ import annotations

import random
from functools import cache

import pytest

from executors.evaluation.text_metrics import best, contains, exact_match, f1, rouge_l


@pytest.mark.parametrize(
    ("output", "reference", "score"), [(" A\n", "A", 1.0), ("a", "A", 0.0), ("", " ", 1.0), ("A", "A.", 0.0)]
)
def test_exact_match(output: str, reference: str, score: float) -> None:
    assert exact_match(output, reference) == score


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("The cat sat.", "a CAT sat", 1.0),
        ("cat sat down", "cat", 0.5),  # precision 1/3, recall 1
        ("cat cat", "cat", 2 / 3),  # a word counts as often as both have it
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "a", 1.0),  # nothing is left of either
        ("it's", "its", 1.0),
        ("猫坐", "猫走", 0.5),
    ],
)
def test_f1(output: str, reference: str, score: float) -> None:
    assert f1(output, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("a b", "b a", 0.5),
        ("", "a", 0.0),
        ("!", "?", 1.0),
        ("北京是首都", "首都是北京", 0.4),
    ],
)
def test_rouge_l(output: str, reference: str, score: float) -> None:
    assert rouge_l(output, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("Use the `with`\n statement.", "with statement", 1.0),
        ("Write yields.", "yield", 0.0),
        ("1 << 4", "<<", 1.0),
        ("call x.__ENTER__()", "__enter__", 1.0),
        ("anything", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_contains(output: str, reference: str, score: float) -> None:
    assert contains(output, reference) == score


def test_rouge_l_finds_the_longest_common_subsequence() -> None:
    draw = random.Random(0)
    for _ in range(200):
        one, two = ([draw.choice("abcd") for _ in range(draw.randint(1, 90))] for _ in range(2))
        expected = 2 * slow_subsequence(tuple(one), tuple(two)) / (len(one) + len(two))
        assert rouge_l(" ".join(one), " ".join(two)) == pytest.approx(expected)


def test_the_best_of_several_references_counts() -> None:
    assert best("exact_match", "Paris", ["paris", "Paris"]) == 1.0
    assert best("f1", "big city", ["town", "city"]) == pytest.approx(2 / 3)


def slow_subsequence(one: tuple[str, ...], two: tuple[str, ...]) -> int:
    """The textbook recursion."""

    @cache
    def length(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if one[i - 1] == two[j - 1]:
            return length(i - 1, j - 1) + 1
        return max(length(i - 1, j), length(i, j - 1))

    return length(len(one), len(two))
