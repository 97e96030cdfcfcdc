"""The fields of `jsonl_export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.inference.postprocess import export_jsonl
from mloc_dagster.spec.inference import JsonlExport
from tests.executors.context_of import context_of

METADATA = {"a": {"b": 1}, "k": "v", "z": 0}
ITEMS = [
    {
        "index": 0,
        "prompt": "p0",
        "output": "o0",
        "finish_reason": "stop",
        "metadata": {"a": {"b": 1}, "k": "v", "z": 0},
    },
    {"index": 1, "prompt": "p1", "output": "", "finish_reason": "length", "metadata": {}},
]


def value(folder: Path, field: Any, row: int = 0) -> Any:
    export = JsonlExport.model_validate({"path": "x.jsonl", "fields": {"f": field}})
    done = export_jsonl(context_of(folder, {}), export, [dict(item) for item in ITEMS])
    return json.loads(Path(done["path"]).read_text().splitlines()[row])["f"]


@pytest.mark.parametrize(
    ("field", "row", "expected"),
    [
        ("prompt", 0, "p0"),
        ("output", 0, "o0"),
        ("metadata.k", 0, "v"),
        ("metadata.a.b", 0, 1),
        ("metadata.z", 0, 0),
        ("metadata.k", 1, None),
        ("item.finish_reason", 1, "length"),
        ("item.k", 0, "v"),
        ("constant text", 0, "constant text"),
        (7, 0, 7),
        ({"source": "metadata", "key": "k"}, 0, "v"),
        ({"source": "metadata", "key": "k", "default": "d"}, 1, "d"),
        ({"source": "metadata", "key": "k", "fallback": "prompt"}, 1, "p1"),
        ({"source": "metadata", "key": "k", "fallback": "item.nope", "default": 3}, 1, 3),
        ({"source": "output", "fallback": ["metadata.k", "prompt"]}, 1, "p1"),
        ({"source": "literal", "value": {"a": 1}}, 0, {"a": 1}),
        ({"value": "x"}, 0, "x"),
        ({"source": "metadata"}, 1, {}),
    ],
)
def test_where_a_field_comes_from(tmp_path: Path, field: Any, row: int, expected: Any) -> None:
    assert value(tmp_path, field, row) == expected


def test_required_field_names_its_rows(tmp_path: Path) -> None:
    export = JsonlExport(fields={"p": "prompt", "o": "output"}, required_fields=["p", "o"])
    with pytest.raises(ExecutorError, match=r"'o' has no value in rows 1\."):
        export_jsonl(context_of(tmp_path, {}), export, ITEMS)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExecutorError, match="'q', which is no exported field"):
        export_jsonl(context_of(tmp_path, {}), JsonlExport(required_fields=["q"]), ITEMS)


def test_path_stays_inside(tmp_path: Path) -> None:
    for path in ("/mnt/x/y.jsonl", "./x/y.jsonl"):
        done = export_jsonl(context_of(tmp_path, {}), JsonlExport(path=path), ITEMS)
        assert Path(done["path"]).is_relative_to(tmp_path)
    with pytest.raises(ExecutorError, match="leaves the result folder"):
        export_jsonl(context_of(tmp_path, {}), JsonlExport(path="../y.jsonl"), ITEMS)
