"""Qdrant in files, and behind HTTP.

No Qdrant server runs where the tests do: `fake_qdrant.py` answers the calls, so these tests show what the store asks
for and does with the answers, not how a server keeps vectors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

pytest.importorskip("qdrant_client")

from executors.base import ExecutorError
from executors.rag.stores import Server, store_of
from executors.rag.stores.qdrant import QdrantStore
from tests.executors.rag.conftest import RIGHT, Stages, written
from tests.executors.rag.stores.fake_qdrant import FakeQdrant, serving

KEY = "hunter2-of-qdrant"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeQdrant]:
    monkeypatch.setenv("QDRANT_KEY", KEY)
    with serving(FakeQdrant(KEY)) as running:
        yield running


def on(server: FakeQdrant) -> dict[str, Any]:
    """`rag.vector_store` of a stage that uses the server."""
    return {"type": "qdrant", "url": server.url, "api_key": "${QDRANT_KEY}", "collection": "docs"}


def vectors(count: int, seed: int = 0) -> numpy.ndarray:
    made = numpy.random.default_rng(seed).normal(size=(count, 8)).astype("float32")
    return made / numpy.linalg.norm(made, axis=1, keepdims=True)


def test_files_find_what_chroma_finds(stages: Stages) -> None:
    chroma = stages.asked(stages.indexed()["index_path"], {"mode": "dense"})
    own = stages.indexed("qdrant", vector_store={"type": "qdrant"})
    other = stages.asked(own["index_path"], {"mode": "dense"}, "other")
    for one, two in zip(chroma["queries"], other["queries"], strict=True):
        assert [item["id"] for item in one["items"]] == [item["id"] for item in two["items"]]
        assert [item["score"] for item in one["items"]] == pytest.approx([i["score"] for i in two["items"]], abs=1e-4)


def test_a_stage_indexes_on_the_server_and_another_one_searches_there(stages: Stages, server: FakeQdrant) -> None:
    first = stages.indexed("first", vector_store=on(server))
    [old] = server.collections()
    assert old.startswith("docs-") and server.aliases() == {"docs": old}
    key = {"vector_store": {"type": "qdrant", "api_key": "${QDRANT_KEY}", "collection": "docs"}}
    found = stages.asked(first["index_path"], {"mode": "dense"}, **key)
    assert [query["items"][0]["payload"]["document"] for query in found["queries"]] == RIGHT
    assert KEY not in written(stages.root)

    (stages.notes / "bread.txt").write_text("Bread is baked in an oven.\n", "utf-8")
    stages.indexed("second", vector_store=on(server))
    [new] = server.collections()
    assert new != old and server.aliases() == {"docs": new}
    with pytest.raises(ExecutorError, match=f"has no collection '{old}'"):
        stages.asked(first["index_path"], {}, "late", **key)


@pytest.mark.parametrize("url", [None, "server"])
def test_nearest_are_those_of_exact_cosine(url: str | None, server: FakeQdrant, tmp_path: Path) -> None:
    stored, asked = vectors(600), vectors(70, seed=1)
    store = store_of("qdrant", Server(server.url, KEY) if url else None)
    store.write(tmp_path / "store", "docs", stored, [f"t{at}" for at in range(600)])
    opened = store.open(tmp_path / "store", "docs")
    assert (opened.count, opened.dimension) == (600, 8)
    found = opened.nearest(asked, 3)
    opened.close()
    exact = asked @ stored.T
    assert [[at for at, _ in row] for row in found] == (-exact).argsort(axis=1)[:, :3].tolist()
    assert [row[0][1] for row in found] == pytest.approx(exact.max(axis=1).tolist(), abs=1e-4)


def test_the_alias_keeps_its_collection_until_the_new_one_is_whole(server: FakeQdrant, tmp_path: Path) -> None:
    store = QdrantStore(server.url, KEY)
    store.write(tmp_path / "a", "docs", vectors(300), ["x"] * 300)
    [old] = server.collections()
    server.upserts_left = 1
    with pytest.raises(ExecutorError, match=r"answered 500: .*disk full"):
        store.write(tmp_path / "b", "docs", vectors(600, seed=2), ["y"] * 600)
    assert server.aliases() == {"docs": old} and server.held.count(old).count == 300
    assert store.open(tmp_path / "a", "docs").count == 300
    server.upserts_left = None
    store.write(tmp_path / "b", "docs", vectors(600, seed=2), ["y"] * 600)
    [new] = server.collections()
    assert server.aliases() == {"docs": new} and server.held.count(new).count == 600
    assert [call for call in server.calls if call == "POST /collections/aliases"] == ["POST /collections/aliases"] * 2


def test_a_server_that_loses_points_does_not_get_the_alias(server: FakeQdrant, tmp_path: Path) -> None:
    store = QdrantStore(server.url, KEY)
    store.write(tmp_path / "a", "docs", vectors(3), ["x"] * 3)
    before, upsert = server.aliases(), server.held.upsert
    server.held.upsert = lambda name, points: upsert(name, points[:-1])
    with pytest.raises(ExecutorError, match="holds 3 vectors of 8 numbers, not 4 of 8; the old one stays in use"):
        store.write(tmp_path / "b", "docs", vectors(4, seed=5), ["y"] * 4)
    assert server.aliases() == before


def test_the_same_index_again_changes_nothing_on_the_server(server: FakeQdrant, tmp_path: Path) -> None:
    store = QdrantStore(server.url, KEY)
    for name in ("a", "b"):
        store.write(tmp_path / name, "docs", vectors(4), list("abcd"))
    assert len(server.collections()) == 1
    assert sum(call.startswith("PUT /collections/") and call.endswith("/points") for call in server.calls) == 1


def test_a_wrong_key_and_a_server_that_is_away_are_told(server: FakeQdrant, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match=r"answered 401: .*Must provide an API key") as caught:
        QdrantStore(server.url, "wrong").write(tmp_path / "a", "docs", vectors(1), ["x"])
    assert caught.value.hint == "Check rag.vector_store.api_key."
    with pytest.raises(ExecutorError, match=r"Qdrant at http://127\.0\.0\.1:9 does not answer"):
        QdrantStore("http://127.0.0.1:9").write(tmp_path / "a", "docs", vectors(1), ["x"])


def test_without_the_package_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ExecutorError, match="qdrant-client is not installed") as caught:
        store_of("qdrant")
    assert caught.value.hint == "Run: pip install 'mloc-dagster[qdrant]'"
