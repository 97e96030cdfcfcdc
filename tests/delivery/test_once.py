"""A receiver that fails, hangs or answers 409 has exactly one accepted result; signed, as docs/deliveries.md says."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mloc_dagster.delivery import DeliveryError, deliver
from mloc_dagster.spec import SpecError, load_file, load_text
from mloc_dagster.spec.output import Destination
from mloc_dagster.store.home import Home
from tests.delivery.keeper import Keeper, Manner, running_keeper
from tests.delivery.receiver import Receiver

PAGE = (Path(__file__).absolute().parents[2] / "docs" / "deliveries.md").read_text("utf-8")
KEYS = {"0f3c/tune", "0f3c/tune/final_lora.tar.gz"}


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A receiver that accepts each key once."""
    with running_keeper() as running:
        yield running


def to(keeper: Keeper, **more: object) -> Destination:
    told = {"type": "http", "url": keeper.address, "retry_backoff_sec": 0.01, "timeout_sec": 0.3, **more}
    return Destination.model_validate(told)


@pytest.mark.parametrize(
    "manners",
    [
        ["fail", "fail"],
        ["hang"],
        ["accept and hang"],
        ["accept and break off"],
        ["fail", "accept and hang"],
        ["hang", "accept and break off"],
    ],
    ids=", ".join,
)
def test_exactly_one_result_is_accepted(folder: Path, home: Home, keeper: Keeper, manners: list[Manner]) -> None:
    keeper.manners = list(manners)
    deliver(folder, to(keeper), home, "t")
    assert keeper.accepted == dict.fromkeys(KEYS, 1)
    again = [status for _, status in keeper.asked].count(409)
    assert again == sum(manner.startswith("accept") for manner in manners)
    assert len(keeper.asked) == len(manners) + len(KEYS)


def test_a_result_that_was_accepted_before_is_delivered(folder: Path, home: Home, keeper: Keeper) -> None:
    for _ in range(2):
        deliver(folder, to(keeper, retries=0), home, "t")
    assert keeper.accepted == dict.fromkeys(KEYS, 1)
    assert [status for _, status in keeper.asked] == [201, 201, 409, 409]


def test_what_failed_for_good_is_accepted_once_when_it_is_delivered_again(
    folder: Path, home: Home, keeper: Keeper
) -> None:
    keeper.manners = ["fail", "fail", "accept and hang"]
    with pytest.raises(DeliveryError, match=r"was tried 3 times and failed: .*Read timed out"):
        deliver(folder, to(keeper, retries=2), home, "t")
    deliver(folder, to(keeper, retries=2), home, "t")
    assert keeper.accepted == dict.fromkeys(KEYS, 1)


def test_the_signature_is_what_the_page_verifies(
    folder: Path, home: Home, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", "hunter2 of the hooks")
    keeper.manners = ["fail"]
    told = deliver(folder, to(keeper, signing_secret="${WEBHOOK_SECRET}"), home, "t")
    verify = verifier()
    assert keeper.headers.keys() == KEYS
    for key in KEYS:
        headers, body = keeper.headers[key], keeper.bodies[key]
        assert verify("hunter2 of the hooks", headers, body)
        assert not verify("another secret", headers, body)
        assert not verify("hunter2 of the hooks", headers, body + b" ")
        later = {**headers, "X-MLOC-Timestamp": str(int(headers["X-MLOC-Timestamp"]) + 1)}
        assert not verify("hunter2 of the hooks", later, body)
        old = {**headers, "X-MLOC-Timestamp": str(int(time.time()) - 4000)}
        assert not verify("hunter2 of the hooks", old, body)
    assert "hunter2" not in str(told)


def test_without_a_secret_nothing_is_signed_and_an_unset_one_is_told(folder: Path, home: Home, keeper: Keeper) -> None:
    deliver(folder, to(keeper), home, "t")
    assert not {"X-MLOC-Signature", "X-MLOC-Timestamp"} & keeper.headers["0f3c/tune"].keys()
    with pytest.raises(DeliveryError, match=r"is not tried: output.destination: \$\{NOT_SET_HERE\} is not set"):
        deliver(folder, to(keeper, signing_secret="${NOT_SET_HERE}"), home, "t")
    assert len(keeper.asked) == 2


def test_an_answer_that_never_ends_is_an_answer(folder: Path, home: Home) -> None:
    (folder / "artifacts" / "final_lora.tar.gz").unlink()
    with endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nxx") as keeper:
        begun = time.monotonic()
        assert deliver(folder, to(keeper, timeout_sec=20), home, "t")["status"] == 200
        assert time.monotonic() - begun < 10


def test_a_content_type_of_the_file_is_that_of_the_envelope_alone(folder: Path, home: Home, receiver: Receiver) -> None:
    given = {"content-type": "application/vnd.mloc+json"}
    target = Destination.model_validate({"type": "http", "url": receiver.address, "headers": given})
    deliver(folder, target, home, "t")
    envelope, archive = receiver.taken
    assert envelope.headers["Content-Type"] == "application/vnd.mloc+json"
    assert archive.headers["Content-Type"].startswith("multipart/form-data; boundary=")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("signing_secret: hunter2", r"signing_secret: is no name of the environment.*write \$\{NAME\}"),
        ("headers: {idempotency-KEY: one}", "headers.idempotency-KEY: is a header that every delivery sets itself"),
        ("headers: {X-MLOC-Signature: one}", "sets itself"),
    ],
)
def test_a_file_that_signs_by_hand_is_refused(line: str, told: str) -> None:
    text = "taskType: echo\noutput:\n  destination:\n    type: http\n    url: http://h/\n    " + line
    with pytest.raises(SpecError, match=told) as error:
        load_text(text)
    assert "hunter2" not in str(error.value)
    with pytest.raises(SpecError, match="destination type s3 makes none of its own"):
        load_text("taskType: echo\noutput: {destination: {type: s3, bucket: b, signingSecret: '${A}'}}")


def test_the_file_of_the_page_is_valid(tmp_path: Path) -> None:
    (written,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "report.yaml").write_text(written)
    destination = load_file(tmp_path / "report.yaml").stages[0].spec.output.destination
    assert destination is not None
    assert (destination.signing_secret, destination.retries, destination.timeout_sec) == ("${WEBHOOK_SECRET}", 5, 30)


def verifier() -> Callable[..., bool]:
    """The function of the page."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Callable[..., bool]] = {}
    exec(code, names)
    return names["verify"]


class endless:
    """A server that writes the start of an answer and then nothing, with the connection open."""

    def __init__(self, start: bytes) -> None:
        self._start, self._over = start, threading.Event()

    def __enter__(self) -> Keeper:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return Keeper(f"http://127.0.0.1:{self._socket.getsockname()[1]}")

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(self._start)
            self._over.wait(30)
