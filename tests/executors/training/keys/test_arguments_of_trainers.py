"""Keys that are the library's: the value that a file says is in the library's own object, for each trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.executors.training.keys.capture import Caught, caught, job_of
from tests.executors.training.keys.files import loaded, with_keys
from tests.executors.training.keys.table import (
    GENERATION,
    GRPO,
    LORA,
    LORA_SFT,
    REWARD,
    SAMPLING,
    TRAINERS,
    TRAINING,
    key_of,
)

Catch = Callable[[str, bool], Caught]
READ = [(f"training.{name}", t) for name, key in TRAINING.items() for t in key.read_by if key.argument]
REWARDED = {"type": "function", "identifier": "length", "max_length": 3, "scale": -2.0}


@pytest.fixture(scope="module")
def catch(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Catch:
    """`catch(trainer, given)`: what a file with all keys leads to, or one with none; made once for each trainer."""
    found: dict[tuple[str, bool], Caught] = {}

    def once(trainer: str, given: bool) -> Caught:
        if (trainer, given) not in found:
            keys = all_keys(trainer) if given else {}
            out = tmp_path_factory.mktemp("keys")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TENSORBOARD_LOGGING_DIR", str(out))
                found[trainer, given] = caught(job_of(loaded(with_keys(trainer, keys)), out, blank), patch)
        return found[trainer, given]

    return once


def all_keys(trainer: str) -> dict[str, Any]:
    """Every key that arrives in an argument; the sizes of PPO's steps fit each other."""
    given = {dotted: key_of(dotted).value for dotted, reads in READ if reads == trainer}
    given |= {f"lora.{name}": key.value for name, key in LORA.items()}
    if trainer in SAMPLING:
        given |= {f"generation.{name}": key.value for name, key in GENERATION.items() if key.argument}
        given |= {f"reward_model.{name}": value for name, value in REWARDED.items()}
    return given


@pytest.mark.parametrize(("dotted", "trainer"), READ)
def test_the_trainers_config_holds_it(catch: Catch, dotted: str, trainer: str) -> None:
    key = key_of(dotted)
    plain, given = (getattr(catch(trainer, one).args, key.argument) for one in (False, True))
    assert given == key.expected and plain != key.expected


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", LORA)
def test_pefts_config_holds_it(catch: Catch, name: str, trainer: str) -> None:
    key = LORA[name]
    plain, given = catch(LORA_SFT, False).adapter, catch(trainer, True).adapter
    expected = "SEQ_CLS" if name == "task_type" and trainer == REWARD else key.expected
    assert getattr(given, key.argument) == expected != getattr(plain, key.argument)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_adapter_is_trained_only_where_the_file_asks_for_one(catch: Catch, trainer: str) -> None:
    assert (catch(trainer, False).adapter is None) == (trainer != LORA_SFT)


@pytest.mark.parametrize("trainer", SAMPLING)
@pytest.mark.parametrize("name", [name for name, key in GENERATION.items() if key.argument])
def test_what_samples_answers_holds_it(catch: Catch, name: str, trainer: str) -> None:
    key = GENERATION[name]
    field = "max_completion_length" if (name, trainer) == ("max_new_tokens", GRPO) else key.argument
    plain, given = (getattr(catch(trainer, one).sampling, field) for one in (False, True))
    assert given == key.expected != plain


@pytest.mark.parametrize("trainer", SAMPLING)
def test_the_score_is_as_asked(catch: Catch, trainer: str) -> None:
    """The length of an answer, at most `max_length`, times `scale`; without either the plain length."""
    scores = [catch(trainer, given).score for given in (False, True)]
    assert all(scores) and [score(["ab", "abcdef"]) for score in scores if score] == [[2, 6], [-4, -6]]
