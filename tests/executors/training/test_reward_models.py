"""Classifiers as rewards: which labels count, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.training.reward_functions import reward_function
from tests.executors.context_of import context_of

TEXTS = ["fine", "so bad", "it is"]
LABELS = ("NEUTRAL", "NEGATIVE", "POSITIVE")


@pytest.fixture(scope="module")
def classifier(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of three labels."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(tiny, num_labels=3, id2label=dict(enumerate(LABELS)))
    model = LlamaForSequenceClassification(config)
    model.score.weight.data *= 30  # labels far apart
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def shares(folder: Path) -> list[list[float]]:
    """Probability of each label, computed alone, one text at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist() for text in TEXTS]


def rewards(folder: Path, tmp_path: Path, **section: Any) -> list[float]:
    ctx = context_of(tmp_path, {"task_type": "ppo", "reward_model": {"identifier": str(folder), **section}})
    return reward_function(ctx)(["?"] * 3, TEXTS, [{}] * 3)


def test_sentiment_is_positive_minus_negative_of_the_answer_alone(classifier: Path, tmp_path: Path) -> None:
    expected = [one[2] - one[1] for one in shares(classifier)]
    assert rewards(classifier, tmp_path, type="sentiment") == pytest.approx(expected, abs=1e-5)
    scaled = rewards(classifier, tmp_path, type="sentiment", scale=-2.0)
    assert scaled == pytest.approx([-2 * value for value in expected], abs=1e-5)
    assert max(expected) - min(expected) > 0.05


def test_labels_that_are_named_count(classifier: Path, tmp_path: Path) -> None:
    of = shares(classifier)
    one = rewards(classifier, tmp_path, type="sentiment", positive_label="neutral")
    assert one == pytest.approx([row[0] - row[1] for row in of], abs=1e-5)
    other = rewards(classifier, tmp_path, type="sentiment", positive_label="neutral", negative_label="POSITIVE")
    assert other == pytest.approx([row[0] - row[2] for row in of], abs=1e-5)


def test_classification_reads_the_prompt_too(classifier: Path, tmp_path: Path) -> None:
    alone = rewards(classifier, tmp_path, type="sentiment")
    asked = rewards(classifier, tmp_path, type="classification", positive_label="POSITIVE", negative_label="NEGATIVE")
    assert asked != pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"type": "sentiment", "positive_label": "joy"}, "positive_label is 'joy'"),
        ({"type": "classification"}, "none is said to count"),
        ({"type": "regression"}, "3 outputs"),
    ],
)
def test_labels_that_cannot_be(classifier: Path, tmp_path: Path, section: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        rewards(classifier, tmp_path, **section)
