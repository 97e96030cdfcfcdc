"""The artifact store and the cache of a machine: content by digest, verified, gone on with after a break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executors.remote import store as module
from executors.remote.cache import NodeCache
from executors.remote.document import State
from executors.remote.store import Store, StoreError, files_below


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(module, "PIECE", 1000)
    monkeypatch.setattr("executors.remote.cache.PIECE", 1000)
    return Store(f"file://{tmp_path}/store")


def folder_of(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "sub" / "big").write_bytes(bytes(range(256)) * 20)
    (made / "empty").touch()
    (made / "run").write_text("#!/bin/sh\n")
    (made / "run").chmod(0o755)
    return made


def blobs(store: Store, tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_folder_arrives_as_it_was(scheme: str, tmp_path: Path, request: pytest.FixtureRequest, store: Store) -> None:
    if scheme == "s3":
        request.getfixturevalue("s3").create_bucket(Bucket="artifacts")
        store = Store("s3://artifacts/some/where")
    made = folder_of(tmp_path)
    digest = store.push(files_below(made))
    there = NodeCache(tmp_path / "cache", store).folder(digest)
    assert files_below(there).keys() == {"sub/big", "empty", "run"}
    assert (there / "sub/big").read_bytes() == (made / "sub/big").read_bytes()
    assert (there / "run").stat().st_mode & 0o111 and not (there / "empty").stat().st_size
    assert NodeCache(tmp_path / "cache", store).folder(digest) == there
    assert store.read("jobs/x/state.json", State) is None and store.names("jobs/x") == []
    store.write("jobs/x/state.json", State(out=digest))
    assert store.read("jobs/x/state.json", State) == State(out=digest) and store.names("jobs/x") == ["state.json"]


def test_only_what_is_new_is_sent(store: Store, tmp_path: Path) -> None:
    made = folder_of(tmp_path)
    store.push(files_below(made))
    before = {path: path.stat().st_mtime_ns for path in blobs(store, tmp_path)}
    with (made / "sub" / "big").open("ab") as file:
        file.write(b"more")
    Store(store.url).push(files_below(made))
    after = {path: path.stat().st_mtime_ns for path in blobs(store, tmp_path)}
    assert before.items() <= after.items()
    assert len(after) - len(before) == 2, "the last piece, and the listing"


def test_a_half_sent_piece_is_sent_again(store: Store, tmp_path: Path) -> None:
    made = folder_of(tmp_path)
    digest = store.push(files_below(made))
    damaged = max(blobs(store, tmp_path), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:10])
    assert Store(store.url).push(files_below(made)) == digest
    NodeCache(tmp_path / "cache", store).folder(digest)


def test_inputs_that_were_changed_are_pulled_again(store: Store, tmp_path: Path) -> None:
    made = folder_of(tmp_path)
    digest = store.push(files_below(made))
    cache = NodeCache(tmp_path / "cache", store)
    kept = cache.folder(digest) / "sub" / "big"
    inode = kept.stat().st_ino
    assert (cache.folder(digest) / "sub" / "big").stat().st_ino == inode, "as it was"
    cache.close()
    kept.write_bytes(b"x" * kept.stat().st_size)
    assert (cache.folder(digest) / "sub" / "big").read_bytes() == (made / "sub" / "big").read_bytes()


def test_other_bytes_are_refused(store: Store, tmp_path: Path) -> None:
    digest = store.push(files_below(folder_of(tmp_path)))
    damaged = next(path for path in blobs(store, tmp_path) if path.stat().st_size == 1000)
    damaged.write_bytes(b"x" * 1000)
    with pytest.raises(StoreError, match=f"is damaged: the blob {damaged.name} holds other bytes"):
        NodeCache(tmp_path / "cache", store).folder(digest)


def test_a_pull_goes_on_from_the_pieces_that_are_here(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.push(files_below(folder_of(tmp_path)))
    cache, asked, whole = NodeCache(tmp_path / "cache", store), [], store.piece

    def piece(wanted: str) -> bytes:
        asked.append(wanted)
        if len(asked) == 6:
            raise StoreError("the line is cut")
        return whole(wanted)

    monkeypatch.setattr(store, "piece", piece)
    with pytest.raises(StoreError, match="the line is cut"):
        cache.folder(digest)
    first = set(asked[:5])
    asked[:] = [""] * 10
    there = cache.folder(digest)
    assert (there / "sub/big").stat().st_size == 5120
    assert len(first & set(asked)) <= 3, "the listing, and what had not been written yet"


def test_a_listing_that_leaves_its_folder_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    digest = store.push({"../../evil": tmp_path / "x"})
    with pytest.raises(StoreError, match="leaves its folder"):
        NodeCache(tmp_path / "cache", store).folder(digest)
    assert not (tmp_path / "evil").exists()


def test_a_store_that_is_not_there_is_named(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(StoreError, match=r"the artifact store s3://none/x fails at k: .*\nCheck its address"):
        Store("s3://none/x").write("k", State(out=""))
    with pytest.raises(StoreError, match="is no artifact store"):
        Store("nonsense://x")
