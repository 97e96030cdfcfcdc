"""Names of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.definitions.names import find_file, job_name, task_files
from tests.definitions.conftest import write


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hello.yaml", "hello"),
        ("quickstart/lora-sft.yml", "quickstart__lora_sft"),
        ("a/b.c/d e.yaml", "a__b_c__d_e"),
        ("v1.2.yaml", "v1_2"),
    ],
)
def test_a_name_comes_from_the_path_alone(path: str, name: str) -> None:
    assert job_name(Path(path)) == name


def test_names_beyond_ascii_stay_apart() -> None:
    one, other = job_name(Path("任务一.yaml")), job_name(Path("任务二.yaml"))
    assert one != other and one.isascii() and one.isidentifier()


def test_every_listed_file_is_found_by_its_name(tmp_path: Path) -> None:
    for path in (
        "a.yaml",
        "b-c.yaml",
        "x/y.z.yml",
        "x__y/z.yaml",
        "deep/er/über.yaml",
        "x/_hidden.yaml",
        ".git/a.yaml",
    ):
        write(tmp_path / path)
    listed = list(task_files(tmp_path))
    assert len(listed) == 5
    assert [find_file(tmp_path, job_name(path.relative_to(tmp_path))) for path in listed] == listed


def test_the_first_of_two_files_with_one_name_is_found_and_listed_first(tmp_path: Path) -> None:
    for path in ("a_b.yaml", "a-b.yaml", "a b.yml"):
        write(tmp_path / path)
    assert find_file(tmp_path, "a_b") == next(task_files(tmp_path))


@pytest.mark.parametrize("name", ["", "..", "../a", "/etc/passwd", "missing", "a__", "__a"])
def test_other_names_find_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path / "inner" / "a.yaml")
    write(tmp_path / "a.yaml")
    assert find_file(tmp_path / "inner", name) is None
