"""YAML with positions: what becomes of scalars, where entries stand, what is refused."""

from __future__ import annotations

import pytest

from mloc_dagster.spec.tree import MAX_BYTES, MAX_DEPTH, Mapping, merge, path_text, plain, read


def values(text: str) -> object:
    tree, faults = read(text)
    assert not faults, faults
    return plain(tree)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-7", 5e-7),
        ("1e-5", 1e-5),
        ("2e-4", 2e-4),
        ("1.41e-5", 1.41e-5),
        (".5", 0.5),
        ("+3", 3),
        ("0x1F", 31),
        ("0o17", 15),
        ("007", 7),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("yes", "yes"),
        ("on", "on"),
        ("~", None),
        ("", None),
        ("'8'", "8"),
        ('"null"', "null"),
        ("1.2.3", "1.2.3"),
        ("1_000", "1_000"),
        ("9" * 60, float("9" * 60)),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = values(f"a: {text}")
    assert found == {"a": value}
    assert isinstance(found, dict)
    assert type(found["a"]) is type(value)


def test_places_count_from_one_and_name_key_and_value() -> None:
    tree, _ = read("# comment\nspec:\n  list:\n  - a\n  - b: {c: 1}\n")
    assert isinstance(tree, Mapping)
    spec = tree["spec"]
    assert (spec.origins["list"].key, spec.origins["list"].value) == ((3, 3), (4, 3))
    inner = spec["list"][1]["b"]
    assert inner.origins["c"].key == (5, 9)
    assert inner.origins["c"].text == "spec.list[1].b.c"


def test_wide_characters_count_as_one_column() -> None:
    tree, _ = read("{钥匙: 值, b: 1}")
    assert isinstance(tree, Mapping)
    assert tree.origins["b"].key == (1, 9)


def test_merge_keys_and_aliases() -> None:
    assert values("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: {<<: [*x, {p: 9, r: 4}]}\nd: *x") == {
        "a": {"p": 1, "q": 2},
        "b": {"q": 3, "p": 1},
        "c": {"p": 1, "q": 2, "r": 4},
        "d": {"p": 1, "q": 2},
    }


def test_maps_merge_while_scalars_and_lists_replace() -> None:
    base, _ = read("a: {x: 1, y: [1, 2]}\nb: 1")
    over, _ = read("a: {y: [3]}\nc: 2")
    assert isinstance(base, Mapping) and isinstance(over, Mapping)
    merged = merge(base, over)
    assert plain(merged) == {"a": {"x": 1, "y": [3]}, "b": 1, "c": 2}
    assert plain(base) == {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert merged.origins["c"].key == (2, 1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: " + "x" * MAX_BYTES, "the file is larger than 1024 KiB"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"the file nests deeper than {MAX_DEPTH} levels"),
        ("a: [" + "1," * 120_000 + "]", "the file has more than 50000 values"),
        ("a: &a [*a]", "an alias holds itself or nests too deep"),
        ("a: !!python/name:os.system x", "this YAML tag is not allowed"),
        ("a: !!binary aGk=", "this YAML tag is not allowed"),
        ("!x a: 1", "this YAML tag is not allowed"),
        ("a: 1\n---\nb: 2", "a second YAML document starts here"),
        ("? [a]\n: 1", "a key must be plain text"),
    ],
    ids=lambda text: str(text)[:20],
)
def test_refused(text: str, what: str) -> None:
    _, faults = read(text)
    assert [fault.what for fault in faults] == [what]


def test_syntax_faults_stand_inside_the_file() -> None:
    _, (fault,) = read("a: [1,\n")
    assert (fault.line, fault.column) == (1, 7)


def test_paths_read_as_people_write_them() -> None:
    assert path_text(("spec", "stages", 0, "name")) == "spec.stages[0].name"
    assert path_text((0, "a")) == "[0].a"
