"""The real huggingface_hub against a loopback hub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mloc_dagster.sources import Cache, PullError, peek_dataset, peek_model, pull_dataset, pull_model
from mloc_dagster.spec.data import Data
from mloc_dagster.spec.model import ModelSource
from tests.sources.hub import Hub

ROOT = Path(__file__).parents[2]
WEIGHTS = os.urandom(1 << 20)
FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}
LONG = os.urandom(36 << 20)
"""More than the 10 MiB that huggingface_hub writes at once."""
PULL = """
import sys
from pathlib import Path
from mloc_dagster.sources import Cache, pull_model
from mloc_dagster.spec.model import ModelSource
pulled = pull_model(ModelSource(identifier="acme/tiny"), cache=Cache(Path(sys.argv[1])))
print(pulled.digest, pulled.from_cache)
"""


def model(name: str = "acme/tiny", revision: str | None = None) -> ModelSource:
    return ModelSource(identifier=name, revision=revision)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def wait_until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def start_pull(cache: Cache, hub: Hub, tmp_path: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", PULL, str(cache.root)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_model_is_pulled_once_and_found_again(hub: Hub, cache: Cache) -> None:
    commit = hub.add("models", "acme/tiny", FILES)
    assert peek_model(model(), cache=cache) is None
    first = pull_model(model(), cache=cache)
    assert (first.revision, first.from_cache, first.origin) == (commit, False, "huggingface:acme/tiny")
    assert names(first.path) == set(FILES) and (first.path / "model.safetensors").read_bytes() == WEIGHTS
    assert first.size == sum(map(len, FILES.values()))
    asked = len(hub.asked)
    again = pull_model(model(), cache=cache)
    assert again.from_cache and (again.path, again.digest, again.revision) == (first.path, first.digest, commit)
    assert peek_model(model(), cache=cache) == again
    assert len(hub.asked) == asked


def test_only_the_weights_that_are_needed_are_pulled(hub: Hub, cache: Cache) -> None:
    extra = ["pytorch_model.bin", "onnx/model.onnx", "original/x.safetensors", "consolidated.safetensors", "README.md"]
    hub.add("models", "acme/tiny", FILES | dict.fromkeys(extra, b"x") | {"1_Pooling/config.json": b"{}"})
    assert names(pull_model(model(), cache=cache).path) == set(FILES) | {"1_Pooling/config.json"}


def test_a_model_without_safetensors_comes_with_its_older_weights(hub: Hub, cache: Cache) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"x" * 5000}
    hub.add("models", "acme/old", files)
    assert names(pull_model(model("acme/old"), cache=cache).path) == set(files)


def test_a_data_set_comes_whole_and_datasets_reads_it_offline(hub: Hub, cache: Cache, tmp_path: Path) -> None:
    rows = [{"text": f"row {index}"} for index in range(20)]
    hub.add("datasets", "acme/rows", {
        "README.md": b"---\nconfigs:\n- config_name: small\n  data_files: data/train.jsonl\n---\n",
        "data/train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
    })  # fmt: skip
    data = Data(dataset_name="acme/rows")
    pulled = pull_dataset(data, cache=cache)
    assert peek_dataset(data, cache=cache) is not None

    import datasets

    loaded = datasets.load_dataset(str(pulled.path), "small", split="train[5:8]", cache_dir=str(tmp_path / "arrow"))
    assert list(loaded["text"]) == ["row 5", "row 6", "row 7"]


def test_a_broken_connection_is_continued_not_started_again(hub: Hub, cache: Cache) -> None:
    hub.add("models", "acme/tiny", FILES | {"model.safetensors": LONG})
    hub.break_after["model.safetensors"] = [25 << 20]
    pulled = pull_model(model(), cache=cache)
    assert (pulled.path / "model.safetensors").read_bytes() == LONG
    assert [asked.start > 0 for asked in hub.downloads("model.safetensors")] == [False, True]


def test_bytes_that_came_wrong_are_fetched_again(hub: Hub, cache: Cache) -> None:
    hub.add("models", "acme/tiny", FILES)
    hub.spoil["model.safetensors"] = [1]
    assert (pull_model(model(), cache=cache).path / "model.safetensors").read_bytes() == WEIGHTS


def test_bytes_that_always_come_wrong_are_never_kept(hub: Hub, cache: Cache) -> None:
    hub.add("models", "acme/tiny", FILES)
    hub.spoil["model.safetensors"] = [1] * 9
    with pytest.raises(PullError, match=r"model\.safetensors came damaged twice; try again"):
        pull_model(model(), cache=cache)
    assert peek_model(model(), cache=cache) is None


@pytest.mark.parametrize("where", ["/api/models/acme/tiny", "model.safetensors"])
def test_a_hub_that_is_busy_once_is_asked_again(hub: Hub, cache: Cache, where: str) -> None:
    hub.add("models", "acme/tiny", FILES)
    hub.statuses[where] = [503]
    assert (pull_model(model(), cache=cache).path / "model.safetensors").read_bytes() == WEIGHTS


def test_what_is_not_on_the_hub_is_said(hub: Hub, cache: Cache) -> None:
    hub.add("models", "acme/tiny", FILES)
    with pytest.raises(PullError, match="model acme/other is not on the hub, or is private; check the name"):
        pull_model(model("acme/other"), cache=cache)
    with pytest.raises(PullError, match="model acme/tiny has no revision 'v9'"):
        pull_model(model(revision="v9"), cache=cache)
    hub.add("models", "acme/words", {"README.md": b"x"})
    with pytest.raises(PullError, match="no files to pull"):
        pull_model(model("acme/words"), cache=cache)
    hub.add("models", "acme/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    with pytest.raises(PullError, match=r"LoRA adapter, not a model; name it in model\.adapters"):
        pull_model(model("acme/adapter"), cache=cache)
    with pytest.raises(PullError, match="is no hub id"):
        pull_model(model("../../etc/passwd"), cache=cache)


def test_a_private_model_needs_the_token_of_the_environment(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("models", "acme/tiny", FILES)
    hub.private.add("acme/tiny")
    with pytest.raises(PullError, match="export HF_TOKEN"):
        pull_model(model(), cache=cache)
    assert {asked.token for asked in hub.asked} == {None}
    monkeypatch.setenv("HF_TOKEN", "right")
    pulled = pull_model(model(), cache=cache)
    kept = [path for path in cache.root.parent.rglob("*") if path.is_file() and b"right" in path.read_bytes()]
    assert kept == [] and names(pulled.path) == set(FILES)


def test_a_gated_model_says_so(hub: Hub, cache: Cache) -> None:
    hub.add("models", "acme/tiny", FILES)
    hub.gated.add("acme/tiny")
    with pytest.raises(PullError, match="is gated; accept its terms on the hub and export HF_TOKEN"):
        pull_model(model(), cache=cache)


def test_without_a_network_the_mirror_is_named(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        PullError, match=r"the hub cannot be reached .*; check the network, or set mirror: .*models/<org>"
    ):
        pull_model(model(), cache=cache)


def test_progress_is_reported_in_bytes(hub: Hub, cache: Cache) -> None:
    hub.add("models", "acme/tiny", FILES | {"model.safetensors": LONG})
    hub.pause = 0.005
    seen: list[tuple[int, int | None]] = []
    pulled = pull_model(model(), cache=cache, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (pulled.size, pulled.size)
    assert 0 < seen[0][0] < pulled.size and seen == sorted(seen)


def test_a_killed_pull_leaves_nothing_half_and_the_next_transfers_only_the_rest(
    hub: Hub, cache: Cache, tmp_path: Path
) -> None:
    hub.add("models", "acme/tiny", FILES | {"model.safetensors": LONG})
    hub.pause = 0.01

    def have() -> int:
        return sum(path.stat().st_size for path in cache.root.rglob("*.incomplete"))

    process = start_pull(cache, hub, tmp_path)
    wait_until(lambda: have() > 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert peek_model(model(), cache=cache) is None
    kept = have()
    assert 0 < kept < len(LONG)

    hub.pause = 0.0
    pulled = pull_model(model(), cache=cache)
    assert (pulled.path / "model.safetensors").read_bytes() == LONG
    assert [(one.start, one.sent) for one in hub.downloads("model.safetensors") if one.start] == [
        (kept, len(LONG) - kept)
    ]
    assert names(pulled.path) == set(FILES)


def test_an_older_commit_that_was_half_pulled_leaves_no_files_in_the_newer_one(hub: Hub, cache: Cache) -> None:
    hub.add("models", "acme/tiny", FILES | {"added_tokens.json": b"{}"})
    hub.spoil["model.safetensors"] = [1, 1]
    with pytest.raises(PullError):
        pull_model(model(), cache=cache)
    hub.add("models", "acme/tiny", FILES | {"config.json": b'{"model_type": "newer"}'})
    pulled = pull_model(model(), cache=cache)
    assert names(pulled.path) == set(FILES)
    assert (pulled.path / "config.json").read_bytes() == b'{"model_type": "newer"}'


def test_four_processes_that_pull_at_once_do_it_once(hub: Hub, cache: Cache, tmp_path: Path) -> None:
    hub.add("models", "acme/tiny", FILES)
    hub.pause = 0.02
    processes = [start_pull(cache, hub, tmp_path) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert len({output.split()[0] for output, _ in outputs}) == 1
    assert sorted(output.split()[1] for output, _ in outputs) == ["False", "True", "True", "True"]
    assert len(hub.downloads("model.safetensors")) == 1
