"""Metrics of one output against one reference; 0 to 1, higher is better."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "，。！？；：、“”‘’（）《》")
_QUOTES = str.maketrans("", "", "\"'`*“”‘’")
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u9fff"
_WORDS = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]+")
"""A word, or one character of a script that is written without spaces."""


def exact_match(output: str, reference: str) -> float:
    """1 when both are the same, blanks at both ends aside."""
    return float(output.strip() == reference.strip())


def f1(output: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words that both have.

    Small letters, no punctuation, no English articles (Rajpurkar et al. 2016, "SQuAD", §6.1). Two texts without a
    word are equal.
    """
    given, wanted = _plain_words(output), _plain_words(reference)
    if not given or not wanted:
        return float(given == wanted)
    return _harmonic((Counter(given) & Counter(wanted)).total(), len(given), len(wanted))


def rouge_l(output: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004, "ROUGE", §3.1, with beta 1); no stemming."""
    given, wanted = _WORDS.findall(output.lower()), _WORDS.findall(reference.lower())
    if not given or not wanted:
        return float(given == wanted)
    return _harmonic(_common_subsequence(given, wanted), len(given), len(wanted))


def contains(output: str, reference: str) -> float:
    """1 when the output holds the reference as whole words; blanks, large letters, quotes and backticks aside."""
    given, wanted = _unquoted(output), _unquoted(reference)
    if not wanted:
        return float(given == wanted)
    return float(re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", given) is not None)


TEXT_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "rouge_l": rouge_l,
    "contains": contains,
}


def best(metric: str, output: str, references: Sequence[str]) -> float:
    """Return the score against the reference that fits best."""
    return max(TEXT_METRICS[metric](output, reference) for reference in references)


def _unquoted(text: str) -> str:
    return " ".join(text.casefold().translate(_QUOTES).split())


def _plain_words(text: str) -> list[str]:
    bare = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return _WORDS.findall(bare)


def _harmonic(common: int, given: int, wanted: int) -> float:
    return 2 * common / (given + wanted)


def _common_subsequence(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence, a column of the table at a time as bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    column = every = (1 << len(one)) - 1
    for word in two:
        match = column & places.get(word, 0)
        column = (column + match) | (column - match)
    return len(one) - (column & every).bit_count()
