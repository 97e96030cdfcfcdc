"""Every bad file tells its faults: where, what, and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.spec import SpecError, load_file
from tests.spec.corpus import BAD, expected, name_of


def test_the_corpus_is_large_enough() -> None:
    assert len(BAD) >= 70
    assert sum(len(expected(file)) > 1 for file in BAD) >= 5


@pytest.mark.parametrize("file", BAD, ids=name_of)
def test_faults_of(file: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_file(file)
    told = [(f.line, f.column, f.path, f.what, f.way_out) for f in caught.value.faults]
    assert told == expected(file)
    assert all(fault.file == str(file) for fault in caught.value.faults)


@pytest.mark.parametrize("file", BAD, ids=name_of)
def test_every_fault_says_what_to_do(file: Path) -> None:
    assert expected(file), "the header names no fault"
    assert all(way_out.strip() for *_, way_out in expected(file))


def test_a_fault_reads_as_one_line() -> None:
    with pytest.raises(SpecError) as caught:
        load_file(Path(__file__).parent / "bad" / "key_typo.yaml")
    text = str(caught.value)
    assert text.endswith("key_typo.yaml:8:3 spec.inferense: is not a key of the task language "
                         "(found {'max_tokens': 5}); did you mean inference?")  # fmt: skip
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"\xff\xfe\x00", "the file is not UTF-8 text"), (b"a: " + b"x" * (1 << 20), "the file is larger than 1024 KiB")],
    ids=["bytes", "huge"],
)
def test_a_file_that_is_no_text_or_too_large(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "task.yaml"
    file.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_file(file)
    assert caught.value.faults[0].what == what


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the file cannot be read"):
        load_file(tmp_path / "none.yaml")


def test_many_faults_are_counted_not_listed() -> None:
    from mloc_dagster.spec import load_text
    from mloc_dagster.spec.faults import MAX_FAULTS

    keys = "".join(f"  unknown_key_{number}: 1\n" for number in range(500))
    with pytest.raises(SpecError) as caught:
        load_text(f"apiVersion: mloc/v1\nspec:\n  taskType: echo\n{keys}")
    assert len(caught.value.faults) == MAX_FAULTS + 1
    assert caught.value.faults[-1].what == "and 300 more faults from here on"
