"""Delivery to a URL, over HTTP, to a server on the loopback interface."""

from __future__ import annotations

import json
import os
import socket
import tracemalloc
from email import message_from_bytes
from pathlib import Path

import pytest

from mloc_dagster.delivery import DeliveryError, deliver
from mloc_dagster.spec.output import Destination
from mloc_dagster.store.home import Home
from tests.delivery.conftest import tree
from tests.delivery.receiver import Receiver, Taken


def to(url: str, **more: object) -> Destination:
    return Destination.model_validate({"type": "http", "url": url, "retry_backoff_sec": 0.01, **more})


def part(taken: Taken) -> tuple[str, bytes]:
    """The name and the content of the one file of a multipart body."""
    message = message_from_bytes(f"Content-Type: {taken.headers['Content-Type']}\r\n\r\n".encode() + taken.head)
    (file,) = message.get_payload()  # type: ignore[misc]
    assert 'name="file"' in file["Content-Disposition"]  # type: ignore[index]
    return file.get_filename(), file.get_payload(decode=True)  # type: ignore[union-attr,return-value]


def test_the_envelope_and_every_archive_arrive(folder: Path, home: Home, receiver: Receiver) -> None:
    (folder / "artifacts" / "final_model.tar.gz").write_bytes(b"more")
    target = to(f"{receiver.address}/in/?a=b", headers={"X-Key": "k"}, timeout_sec=5)
    told = deliver(folder, target, home, "t")
    envelope, first, second = receiver.taken
    assert (envelope.method, envelope.path, envelope.headers["X-Key"]) == ("POST", "/in/?a=b", "k")
    assert json.loads(envelope.head)["result"]["note"] == "loss 1"
    assert json.loads(envelope.head)["result"]["metrics"] == {"train_loss": "NaN"}  # as responses.json writes it
    assert [file.path for file in (first, second)] == ["/in/0f3c/tune/files?a=b"] * 2
    assert part(first) == ("final_lora.tar.gz", (folder / "artifacts" / "final_lora.tar.gz").read_bytes())
    assert part(second) == ("final_model.tar.gz", b"more") and second.headers["X-Key"] == "k"
    keys = [taken.headers["Idempotency-Key"] for taken in receiver.taken]
    assert keys == ["0f3c/tune", "0f3c/tune/final_lora.tar.gz", "0f3c/tune/final_model.tar.gz"]
    files = ["final_lora.tar.gz", "final_model.tar.gz"]
    assert told == {"delivered_to": f"{receiver.address}/in/", "files": files, "status": 200}


def test_another_try_sends_the_same_under_the_same_keys(folder: Path, home: Home, receiver: Receiver) -> None:
    receiver.statuses = [503, 200, 500, 409, 429, 409, 200]
    deliver(folder, to(receiver.address, method="put", retries=3), home, "t")
    assert [taken.status for taken in receiver.taken] == [503, 200, 500, 409, 429, 409, 200]
    sent = {(taken.headers["Idempotency-Key"], taken.method) for taken in receiver.taken}
    assert sent == {("0f3c/tune", "PUT"), ("0f3c/tune/final_lora.tar.gz", "POST")}
    assert len({taken.digest for taken in receiver.taken if taken.method == "PUT"}) == 1


def test_what_the_other_side_has_already_is_delivered(folder: Path, home: Home, receiver: Receiver) -> None:
    receiver.statuses = [409, 409]
    assert deliver(folder, to(receiver.address, retries=0), home, "t")["status"] == 409
    assert len(receiver.taken) == 2


def test_a_server_that_keeps_failing_is_told_and_nothing_is_lost(folder: Path, home: Home, receiver: Receiver) -> None:
    before = tree(folder)
    receiver.statuses, receiver.says = [500] * 9, b"the\ndisk is full"
    with pytest.raises(DeliveryError) as told:
        deliver(folder, to(f"{receiver.address}/in", retries=2), home, "t")
    assert len(receiver.taken) == 3
    assert str(told.value) == (
        f"t: http delivery was tried 3 times and failed: POST {receiver.address}/in was answered 500 "
        f"Internal Server Error: the disk is full\n"
        f"The result is kept in {folder}; run the task again to deliver it, the work is not repeated"
    )
    assert tree(folder) == before


@pytest.mark.parametrize(("status", "way_out"), [(401, "headers"), (404, "url"), (422, "output.destination")])
def test_a_refusal_is_not_tried_again(folder: Path, home: Home, receiver: Receiver, status: int, way_out: str) -> None:
    receiver.statuses = [status] * 9
    with pytest.raises(DeliveryError, match=rf"answered {status} .*check .*{way_out}"):
        deliver(folder, to(receiver.address), home, "t")
    assert len(receiver.taken) == 1


def test_a_redirect_is_no_delivery(folder: Path, home: Home, receiver: Receiver) -> None:
    receiver.statuses, receiver.headers = [302], {"Location": "https://new.example/in?key=hunter2"}
    with pytest.raises(DeliveryError, match=r"answered 302 .*it leads to https://new.example/in, write that") as told:
        deliver(folder, to(receiver.address), home, "t")
    assert len(receiver.taken) == 1 and "hunter2" not in str(told.value)


def test_nothing_that_is_told_holds_a_secret(
    folder: Path, home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "hunter2")
    host = receiver.address.removeprefix("http://")
    target = to(f"http://me:p4ss@{host}/${{KEY}}/in?k=${{KEY}}", headers={"X-Key": "${KEY}"}, retries=0)
    told = deliver(folder, target, home, "t")
    assert receiver.taken[0].path == "/hunter2/in?k=hunter2" and receiver.taken[0].headers["X-Key"] == "hunter2"
    assert told["delivered_to"] == f"http://{host}/***/in"
    receiver.statuses, receiver.says = [403, 500], b"your key hunter2 is wrong"
    for _ in range(2):
        with pytest.raises(DeliveryError, match=r"your key \*\*\* is wrong") as error:
            deliver(folder, target, home, "t")
        assert not {"hunter2", "p4ss"} & set(str(error.value).replace("/", " ").split())
    target = to(f"http://me:p4ss@127.0.0.1:{unused_port()}/in?k=plain5ecret", retries=0)
    with pytest.raises(DeliveryError, match="Connection refused") as error:
        deliver(folder, target, home, "t")
    assert "plain5ecret" not in str(error.value) and "p4ss" not in str(error.value)


def test_an_unset_name_is_told_before_anything_is_sent(folder: Path, home: Home, receiver: Receiver) -> None:
    with pytest.raises(DeliveryError, match=r"is not tried: output.destination: \$\{NOT_SET_ANYWHERE\} is not set"):
        deliver(folder, to(receiver.address, headers={"X": "${NOT_SET_ANYWHERE}"}), home, "t")
    assert not receiver.taken


def test_a_large_archive_is_streamed(folder: Path, home: Home, receiver: Receiver) -> None:
    size = 64 << 20
    archive = folder / "artifacts" / "final_model.tar.gz"
    with archive.open("wb") as file:
        file.truncate(size)
    deliver(folder, to(receiver.address), home, "t")  # everything is imported
    receiver.taken.clear()
    tracemalloc.start()
    deliver(folder, to(receiver.address), home, "t")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert receiver.taken[-1].size > size and peak < size / 4


def test_our_own_results_address_keeps_the_result_where_it_is(folder: Path, home: Home, tmp_path: Path) -> None:
    aside = tmp_path / "aside" / "0f3c" / "tune"  # what a reused result is delivered from
    aside.mkdir(parents=True)
    os.link(folder / "responses.json", aside / "responses.json")
    target = to(f"http://localhost:{unused_port()}/api/v1/results/")
    assert deliver(aside, target, home, "t")["delivered_to"] == str(folder)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
