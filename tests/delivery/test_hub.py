"""Delivery to a model hub: the real huggingface_hub against a hub on the loopback interface."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mloc_dagster.delivery import DeliveryError, deliver
from mloc_dagster.sources import Cache, pull_model
from mloc_dagster.spec.model import ModelSource
from mloc_dagster.spec.output import Destination
from mloc_dagster.store.home import Home
from tests.delivery.conftest import finished, tree
from tests.sources.conftest import hub
from tests.sources.hub import Hub

__all__ = ["hub"]


@pytest.fixture(autouse=True)
def _plain_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a token that may write, and large files over plain HTTP."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture(autouse=True)
def _token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "right")


def to(**more: object) -> Destination:
    given = {"type": "huggingface", "repo_id": "ann/tuned", "retries": 0, "retry_backoff_sec": 0}
    return Destination.model_validate(given | more)


def test_the_weights_arrive_and_can_be_pulled(folder: Path, home: Home, hub: Hub) -> None:
    weights = folder / "final_model"
    (folder / "final_lora").rename(weights)
    (weights / "adapter_config.json").rename(weights / "config.json")
    (weights / "adapter_model.safetensors").rename(weights / "model.safetensors")
    told = deliver(folder, to(), home, "t")
    assert told == {"delivered_to": "ann/tuned", "commit": hub.commits["models", "ann/tuned"]}
    arrived = hub.repositories["models", "ann/tuned"]
    expected = tree(weights)
    assert set(arrived) == {"config.json", "model.safetensors", "README.md"}
    assert arrived["model.safetensors"] == expected["model.safetensors"]
    assert hub.private == {"ann/tuned"} and len(hub.large) == 1
    pulled = pull_model(ModelSource(identifier="ann/tuned"), cache=Cache(home.cache))
    assert (pulled.path / "model.safetensors").read_bytes() == expected["model.safetensors"]


def test_a_card_does_not_name_a_folder_of_this_machine(folder: Path, home: Home, hub: Hub) -> None:
    deliver(folder, to(), home, "t")
    card = hub.repositories["models", "ann/tuned"]["README.md"].decode()
    assert "/home/ann" not in card and "library_name: peft" in card and "# An adapter" in card and "- lora" in card
    assert "/home/ann" in (folder / "final_lora" / "README.md").read_text(), "the run folder was changed"
    kept = "---\nbase_model: acme/tiny\n---\n# Mine\n"
    (folder / "final_lora" / "README.md").write_text(kept)
    deliver(folder, to(), home, "t")
    assert hub.repositories["models", "ann/tuned"]["README.md"].decode() == kept


def test_twice_gives_the_same_and_sends_nothing_again(folder: Path, home: Home, hub: Hub) -> None:
    (folder / "final_lora" / "README.md").unlink()
    first = deliver(folder, to(), home, "t")
    before = len(hub.asked)
    assert deliver(folder, to(), home, "t") == first
    asked = hub.asked[before:]
    assert not [one for one in asked if one.path.startswith("/large/") or one.path.endswith("/commit/main")]


def test_a_result_without_weights_goes_whole_below_a_path(folder: Path, home: Home, hub: Hub) -> None:
    shutil.rmtree(folder / "final_lora")
    deliver(folder, to(path="/runs/1/", private=False), home, "t")
    assert {f"runs/1/{name}" for name in tree(folder)} == set(hub.repositories["models", "ann/tuned"])
    assert not hub.private


def test_a_name_without_an_owner_is_that_of_the_token(folder: Path, home: Home, hub: Hub) -> None:
    assert deliver(folder, to(repo_id="tuned"), home, "t")["delivered_to"] == "me/tuned"
    assert "adapter_config.json" in hub.repositories["models", "me/tuned"]


def test_a_hub_that_fails_once_is_asked_again(folder: Path, home: Home, hub: Hub) -> None:
    hub.statuses = {"/commit/main": [500]}
    with pytest.raises(DeliveryError, match=r"was tried once and failed: ann/tuned: the hub answered 500"):
        deliver(folder, to(), home, "t")
    assert hub.repositories["models", "ann/tuned"] == {}, "half a delivery"
    hub.statuses = {"/commit/main": [500]}
    deliver(folder, to(retries=1), home, "t")
    assert set(hub.repositories["models", "ann/tuned"]) == set(tree(folder / "final_lora"))


@pytest.mark.parametrize("token", ["wrong", None])
def test_a_token_that_may_not_write(
    folder: Path, home: Home, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    before = tree(home.results)
    with pytest.raises(DeliveryError, match=r"ann/tuned: the hub answered 401.*export an HF_TOKEN that may write"):
        deliver(folder, to(retries=3), home, "t")
    assert sum(asked.path == "/api/repos/create" for asked in hub.asked) == 1, "it was tried again"
    assert tree(home.results) == before


def test_a_name_that_cannot_be(folder: Path, home: Home, hub: Hub) -> None:
    with pytest.raises(DeliveryError, match=r"output.destination.repo_id: Repo id must"):
        deliver(folder, to(repo_id="a/b/c", retries=3), home, "t")
    assert not hub.asked


def test_a_card_that_the_hub_refuses(home: Home, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(home, "loss 1")
    hub.statuses = {"/api/validate-yaml": [400]}
    with pytest.raises(DeliveryError, match=r"ann/tuned: Invalid metadata in README.md"):
        deliver(folder, to(retries=3), home, "t")
    assert hub.repositories["models", "ann/tuned"] == {}
