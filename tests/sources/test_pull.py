"""Local models and data sets, and what is refused wherever it should come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.sources import Cache, PullError, peek_dataset, peek_model, pull_dataset, pull_model
from mloc_dagster.spec.data import Data, RowSource
from mloc_dagster.spec.model import ModelSource


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model, and a data file in `data/`."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("written", ["{0}/tiny", "tiny", "./tiny", "file://{0}/tiny", "file://localhost{0}/tiny"])
def test_a_local_model_stays_where_it_is(folder: Path, cache: Cache, written: str) -> None:
    source = ModelSource(type="local", identifier=written.format(folder))
    pulled = pull_model(source, cache=cache)
    assert (pulled.path, pulled.size, pulled.from_cache) == (folder / "tiny", 2, True)
    assert peek_model(source, cache=cache) == pulled and not list(cache.root.glob("*"))


def test_a_local_model_that_changed_has_another_digest(folder: Path, cache: Cache) -> None:
    source = ModelSource(type="local", identifier="tiny")
    before = pull_model(source, cache=cache)
    (folder / "tiny/config.json").write_text("[]")
    assert pull_model(source, cache=cache).digest != before.digest


@pytest.mark.parametrize(
    "written", ["data/rows.jsonl", "./data/rows.jsonl", "{0}/data/rows.jsonl", "file://{0}/data/rows.jsonl"]
)
def test_a_local_data_file(folder: Path, cache: Cache, written: str) -> None:
    for data in (Data(url=written.format(folder)), Data(dataset_name=written.format(folder))):
        pulled = pull_dataset(data, cache=cache)
        assert pulled.path == folder / "data/rows.jsonl" and pulled.digest.startswith("sha256:")
        assert peek_dataset(data, cache=cache) == pulled


def test_the_source_of_the_older_dialect(folder: Path, cache: Cache) -> None:
    local = Data(source=RowSource(type="local", path="data/rows.jsonl"))
    assert pull_dataset(local, cache=cache).path == folder / "data/rows.jsonl"


def test_what_is_not_there_is_said(folder: Path, cache: Cache) -> None:
    with pytest.raises(PullError, match=f"{folder}/nowhere is not there; check the path"):
        pull_model(ModelSource(type="local", identifier="nowhere"), cache=cache)
    with pytest.raises(PullError, match=r"local:data is no model: it has no config\.json"):
        pull_model(ModelSource(type="local", identifier="data"), cache=cache)
    with pytest.raises(PullError, match=r"no data set is named; set data\.dataset_name or data\.url"):
        pull_dataset(Data(), cache=cache)
    with pytest.raises(PullError, match="nothing is at memory://empty; check bucket and path"):
        pull_dataset(Data(url="memory://empty"), cache=cache)
    with pytest.raises(PullError, match="nosuch://x is no address to pull from"):
        pull_dataset(Data(url="nosuch://x"), cache=cache)
    assert peek_dataset(Data(url="nosuch://x"), cache=cache) is None
