"""A mirror answers for hub ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from mloc_dagster.sources import Cache, PullError, peek_dataset, peek_model, pull_dataset, pull_model
from mloc_dagster.spec.data import Data
from mloc_dagster.spec.model import ModelSource
from tests.sources.hub import Hub

MODEL = ModelSource(identifier="acme/tiny")
DATA = Data(dataset_name="acme/rows")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror with one model and one data set, in a folder with a name that needs quoting."""
    folder = tmp_path / "my mirror%20#1"
    (folder / "models/acme/tiny").mkdir(parents=True)
    (folder / "models/acme/tiny/config.json").write_text("{}")
    (folder / "datasets/acme/rows").mkdir(parents=True)
    (folder / "datasets/acme/rows/train.jsonl").write_text('{"text": "a"}\n')
    return folder


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers at the hub's address."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("written", [str, Path.as_uri])
def test_a_folder_answers_without_a_copy(mirror: Path, cache: Cache, written: Callable[[Path], str]) -> None:
    address = written(mirror)
    model, data = pull_model(MODEL, cache=cache, mirror=address), pull_dataset(DATA, cache=cache, mirror=address)
    assert model.path == mirror / "models/acme/tiny" and model.origin.startswith("file://")
    assert data.path == mirror / "datasets/acme/rows"
    assert peek_model(MODEL, cache=cache, mirror=address) == model
    assert peek_dataset(DATA, cache=cache, mirror=address) == data


def test_a_name_that_the_mirror_lacks_comes_from_the_hub(mirror: Path, hub: Hub, cache: Cache) -> None:
    hub.add("models", "acme/other", {"config.json": b"{}", "model.safetensors": b"x"})
    pulled = pull_model(ModelSource(identifier="acme/other"), cache=cache, mirror=str(mirror))
    assert pulled.origin == "huggingface:acme/other"


def test_the_hub_is_not_asked_when_only_the_mirror_may_answer(
    mirror: Path, hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_MIRROR_ONLY", "1")
    hub.add("models", "acme/other", {"config.json": b"{}"})
    with pytest.raises(
        PullError, match=r"acme/other is not at file:///.*models/acme/other, and MLOC_MIRROR_ONLY is set"
    ):
        pull_model(ModelSource(identifier="acme/other"), cache=cache, mirror=str(mirror))
    with pytest.raises(PullError, match="has no mirror to come from"):
        pull_model(MODEL, cache=cache)
    assert pull_model(MODEL, cache=cache, mirror=str(mirror)).path.is_dir()
    assert pull_model(ModelSource(type="local", identifier=str(mirror / "models/acme/tiny")), cache=cache)
    assert hub.asked == []


def test_the_same_files_have_the_same_digest_from_hub_and_mirror(mirror: Path, hub: Hub, cache: Cache) -> None:
    hub.add("models", "acme/tiny", {"config.json": b"{}"})
    assert pull_model(MODEL, cache=cache).digest == pull_model(MODEL, cache=cache, mirror=str(mirror)).digest


@pytest.mark.usefixtures("no_hub")
def test_a_mirror_in_a_bucket_is_copied_once(cache: Cache) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.store.clear()
    bucket.pipe("/mirror/models/acme/tiny/config.json", b"{}")
    bucket.pipe("/mirror/models/acme/tiny/sub/tokenizer.json", b"{ }")
    assert peek_model(MODEL, cache=cache, mirror="memory://mirror") is None
    pulled = pull_model(MODEL, cache=cache, mirror="memory://mirror")
    assert (pulled.path / "sub/tokenizer.json").read_bytes() == b"{ }" and not pulled.from_cache
    bucket.store.clear()
    found = peek_model(MODEL, cache=cache, mirror="memory://mirror")
    assert found is not None and found.path == pulled.path


def test_a_name_cannot_lead_out_of_the_mirror(mirror: Path, cache: Cache) -> None:
    (mirror / "secret").mkdir()
    for name in ("../secret", "acme/../../secret", "/etc", "a/b/c"):
        with pytest.raises(PullError, match="is no hub id"):
            pull_model(ModelSource(identifier=name), cache=cache, mirror=str(mirror))
