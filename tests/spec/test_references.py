"""References: parsing, finding, resolving."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mloc_dagster.spec.references import BadReference, find, has_reference, parse, resolve, unclosed, whole

ENVELOPE = {
    "task_id": "t-1",
    "result": {
        "items": [{"output": "hello", "index": 0}, {"output": "bye", "index": 1}],
        "usage": {"total_tokens": 7},
        "none": None,
    },
}


def envelopes(stage: str) -> Mapping[str, object]:
    if stage != "gen":
        raise BadReference(f"no result of {stage}")
    return ENVELOPE


def resolved(value: object) -> object:
    return resolve(value, envelopes, {"TOKEN": "s3cret"})


@pytest.mark.parametrize(
    ("body", "head", "path"),
    [
        ("gen.result.items[0].output", "gen", ("result", "items", 0, "output")),
        ("gen.result.items.0.output", "gen", ("result", "items", "0", "output")),
        (" gen.task_id ", "gen", ("task_id",)),
        ("my-stage.result.x[0][1]", "my-stage", ("result", "x", 0, 1)),
        ("NAME", "NAME", ()),
    ],
)
def test_parse(body: str, head: str, path: tuple[str | int, ...]) -> None:
    reference = parse(body)
    assert (reference.head, reference.path, reference.is_environment) == (head, path, not path)


@pytest.mark.parametrize("body", ["", ".", "a.", ".a", "a..b", "a.b[x]", "a.b[0", "a b", "HOME:-x", "a-b", "1"])
def test_malformed(body: str) -> None:
    with pytest.raises(BadReference):
        parse(body)


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("${gen.result.items}", ENVELOPE["result"]["items"]),
        ("${gen.result.items[1].index}", 1),
        ("${gen.result.items.1.output}", "bye"),
        ("${gen.result.none}", None),
        ("${gen.task_id}", "t-1"),
        ("${TOKEN}", "s3cret"),
        ("Bearer ${TOKEN}", "Bearer s3cret"),
        ("n=${gen.result.usage.total_tokens}", "n=7"),
        ("u=${gen.result.usage}", 'u={"total_tokens": 7}'),
        ("$${gen.result.x} and $${y}", "${gen.result.x} and ${y}"),
        ("costs $5 {x}", "costs $5 {x}"),
        (["${gen.result.items[0].index}", {"a": "${TOKEN}"}, 3], [0, {"a": "s3cret"}, 3]),
    ],
)
def test_resolve(value: object, result: object) -> None:
    assert resolved(value) == result


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("${gen.result.items[5].output}", "list of 2"),
        ("${gen.result.item}", "it has items, usage, none"),
        ("${gen.result.items[0].output.x}", "nothing called 'x'"),
        ("${other.result.x}", "no result of other"),
        ("${UNSET}", "export UNSET"),
    ],
)
def test_what_is_not_there(value: str, says: str) -> None:
    with pytest.raises(BadReference, match=says.replace("[", r"\[")):
        resolved(value)


def test_alternatives_are_tried_lazily() -> None:
    group = {"path": "${other.result.path}", "task_id": "${gen.task_id}", "url": "${UNSET}"}
    assert resolved(group) == {"task_id": "t-1"}


def test_alternatives_of_which_none_works_are_all_named() -> None:
    with pytest.raises(BadReference, match=r"none of path, taskId, url.*path:.*url:"):
        resolved({"path": "${other.result.path}", "url": "${UNSET}"})


def test_a_single_alternative_is_not_optional() -> None:
    with pytest.raises(BadReference, match="no result of other"):
        resolved({"path": "${other.result.path}"})


def test_find_names_the_place_of_each() -> None:
    tree = {"a": ["x ${one.b} ${TWO}", {"c": "$${no}"}], "d": 3}
    assert list(find(tree)) == [(("a", 0), "one.b"), (("a", 0), "TWO")]


@pytest.mark.parametrize(
    ("value", "live", "body"),
    [
        ("${a.b}", True, "a.b"),
        ("x ${a.b}", True, None),
        ("$${a.b}", False, None),
        ("${", False, None),
        (5, False, None),
    ],
)
def test_has_reference_and_whole(value: object, live: bool, body: str | None) -> None:
    assert has_reference(value) is live
    assert whole(value) == body


def test_unclosed() -> None:
    assert list(unclosed({"a": ["ok ${x}", "${x", "$${x", "${x} ${y"], "b": "${{x}}"})) == [("a", 1), ("a", 3), ("b",)]
