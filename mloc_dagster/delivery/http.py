"""Delivery to a URL: the envelope, then each archive and the provenance to `<url>/<task id>/files` as multipart `file`.

Every request carries an Idempotency-Key, the same for every try and every replay of a task, and 409 means that the
other side has it already. With `signing_secret` every try is signed anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlparse
from uuid import uuid4

from mloc_dagster.delivery.errors import DeliveryError, TryAgain
from mloc_dagster.delivery.signature import signed
from mloc_dagster.provenance.names import provenance_of
from mloc_dagster.sources.pulled import shown
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.output import Destination
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import RESPONSES, Envelope, read_envelope

if TYPE_CHECKING:
    from requests import Response
    from requests_toolbelt import MultipartEncoder

_BLOCK = 1 << 20
_LONGEST_WORDS = 1000
_INTERNAL_HOSTS = {"localhost", "127.0.0.1", "orchestrator"}
_INTERNAL_PATH = "/api/v1/results"
_TYPES = {".gz": "application/gzip", ".json": "application/vnd.cyclonedx+json", ".pem": "application/x-pem-file"}
_WORTH_ANOTHER_TRY = {408, 425, 429}
_HINTS = {
    401: "check output.destination.headers",
    403: "check output.destination.headers",
    404: "check output.destination.url",
    405: "check output.destination.url and method",
    413: "the server takes no body of this size",
}


def to_url(folder: Path, target: Destination, home: Home) -> dict[str, Json]:
    """Send a result, its archives and their provenance; our own results address needs no sending."""
    assert target.url is not None
    parsed = urlparse(target.url)
    if parsed.hostname in _internal_hosts() and parsed.path.rstrip("/") == _INTERNAL_PATH:
        own = home.run_folder(folder.parent.name, folder.name)
        return {"delivered_to": str(own), "note": "our own results address: kept in the results folder"}
    envelope = read_envelope(folder / RESPONSES)
    body = envelope.model_dump_json().encode()
    given = {name.lower(): value for name, value in target.headers.items()}
    kind = given.get("content-type", "application/json")
    headers = {"Content-Type": kind, "Idempotency-Key": envelope.task_id}
    status = _send(target, target.method.upper(), target.url, body, headers | signed(target.signing_secret, [body]))
    sent: list[Json] = [_send_file(path, target, envelope) for path in _archives(folder)]
    return {"delivered_to": shown(target.url), "files": sent, "status": status}


def _send_file(path: Path, target: Destination, envelope: Envelope) -> str:
    from requests_toolbelt import MultipartEncoder

    parsed = urlparse(str(target.url))
    url = parsed._replace(path=f"{parsed.path.rstrip('/')}/{envelope.task_id}/files").geturl()
    with path.open("rb") as file:
        parts, boundary = {"file": (path.name, file, _TYPES.get(path.suffix, "application/octet-stream"))}, uuid4().hex
        first = MultipartEncoder(parts, boundary)  # read once to sign it, and once more to send it
        signature = signed(target.signing_secret, iter(lambda: first.read(_BLOCK), b""))
        file.seek(0)
        body = MultipartEncoder(parts, boundary)
        headers = {"Content-Type": body.content_type, "Idempotency-Key": f"{envelope.task_id}/{path.name}"}
        _send(target, "POST", url, body, headers | signature)
    return path.name


def _send(
    target: Destination, method: str, url: str, body: bytes | IO[bytes] | MultipartEncoder, headers: dict[str, str]
) -> int:
    """Make one request and return its status; redirects are not followed, since a POST would become a GET."""
    import requests

    try:
        answer = requests.request(
            method,
            url,
            data=body,
            headers=_merged(target.headers, headers),
            timeout=target.timeout_sec,
            allow_redirects=False,
            stream=True,  # what is accepted is accepted, whatever the rest of the answer does
        )
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.InvalidHeader) as no:
        raise DeliveryError(f"{shown(url)}: {no}; check output.destination") from None
    except requests.RequestException as error:
        raise TryAgain(f"{shown(url)}: {_reason(error)}") from None
    with answer:
        _check(answer, f"{method} {shown(url)}")
    return answer.status_code


def _merged(given: dict[str, str], own: dict[str, str]) -> dict[str, str]:
    """Headers of the file, but for those that a delivery sets, however they are spelt."""
    names = {name.lower() for name in own}
    return {**{name: value for name, value in given.items() if name.lower() not in names}, **own}


def _check(answer: Response, what: str) -> None:
    status = answer.status_code
    if 200 <= status < 300 or status == HTTPStatus.CONFLICT:
        return
    said = " ".join(_words(answer)[:200].split())
    told = f"{what} was answered {status} {answer.reason}{f': {said}' if said else ''}"
    if 300 <= status < 400:
        where = shown(answer.headers.get("Location", "elsewhere"))
        raise DeliveryError(f"{told}; it leads to {where}, write that as output.destination.url")
    if status < 500 and status not in _WORTH_ANOTHER_TRY:
        raise DeliveryError(f"{told}; {_HINTS.get(status, 'see what the server wants, and check output.destination')}")
    raise TryAgain(told)


def _words(answer: Response) -> str:
    """The start of what the other side says, if it does."""
    import requests

    try:
        return next(answer.iter_content(_LONGEST_WORDS), b"").decode("utf-8", "replace")
    except requests.RequestException:
        return ""


def _reason(error: Exception) -> str:
    """The cause without the address, whose query may hold a secret."""
    inner = error.args[0] if error.args else error
    return f"{type(error).__name__}: {getattr(inner, 'reason', inner)}"


def _internal_hosts() -> set[str]:
    return _INTERNAL_HOSTS | set(filter(None, [os.environ.get("MLOC_PUBLIC_HOST")]))


def _archives(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / "artifacts").glob("*.tar.gz"))
    yield from provenance_of(folder)
