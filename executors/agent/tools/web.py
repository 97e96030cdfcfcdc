"""Web addresses that a tool may open: public ones, after the name was resolved, and again on each redirect."""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Annotated
from urllib.parse import urlsplit

from executors.agent.tools.fault import ToolFault
from executors.rag.documents import text_of_html

NETWORK = "MLOC_AGENT_NETWORK"
"""`1` lets agents use the network."""
ALLOWED = "MLOC_AGENT_ALLOWED_HOSTS"
"""Addresses of this machine and of private networks that may be opened all the same: host:port, separated by commas."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_MOST_BYTES = 2 * 1024 * 1024
_SHOWN = 12_000
_AGENT = "mloc-agent/1 (research tool; one request at a time)"


@dataclass(frozen=True)
class Page:
    """What an address gave; `url` is where redirects led to."""

    url: str
    kind: str
    text: str


def web_fetch(
    url: Annotated[str, "Address of a page, with https:// or http://"],
    first_character: Annotated[int, "Where to start in a long page"] = 0,
) -> str:
    """Open a web page and return its text."""
    page = fetch(url)
    text = text_of_html(page.text) if "html" in page.kind else page.text
    shown = text[first_character : first_character + _SHOWN]
    last = first_character + len(shown)
    rest = f"\n[{len(text) - last} more characters; go on with first_character {last}]" if last < len(text) else ""
    return f"{page.url}\n{shown}{rest}"


def fetch(url: str, headers: Mapping[str, str] | None = None, seconds: float = 30.0) -> Page:
    """Open an address that may be opened; at most 2 MiB are read. Raises ToolFault saying why not."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ToolFault(f"{url!r} is no web address; write https://…")
    request = urllib.request.Request(url, headers={"User-Agent": _AGENT, **(headers or {})})
    try:
        with _opener().open(request, timeout=seconds) as answer:
            content = _read(answer, time.monotonic() + seconds)
            charset = answer.headers.get_content_charset() or "utf-8"
            return Page(answer.geturl(), answer.headers.get_content_type(), _decoded(content, charset))
    except urllib.error.HTTPError as error:
        raise ToolFault(f"{url} answered {error.code} {error.reason}.") from None
    except urllib.error.URLError as error:
        raise ToolFault(f"{url} cannot be opened: {error.reason}.") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ToolFault(f"{url} cannot be opened: {error}.") from None


def _read(answer: http.client.HTTPResponse, until: float) -> bytes:
    content = b""
    while len(content) < _MOST_BYTES and (part := answer.read1(65536)):
        content += part
        if time.monotonic() > until:
            raise ToolFault(f"The answer did not end in time; {len(content)} bytes were read.")
    return content


def _decoded(content: bytes, charset: str) -> str:
    try:
        return content.decode(charset, errors="replace")
    except LookupError:
        return content.decode("utf-8", errors="replace")


def _connected(address: tuple[str, int], timeout: float | None) -> socket.socket:
    """Connect to a name's first address, when all that the name stands for may be opened.

    The address that was looked at is the one that is connected to, so a name that changes meanwhile gains nothing.
    """
    host, port = address
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for _, _, _, _, where in found:
        refused = refusal(host, str(where[0]), port)
        if refused:
            raise ToolFault(refused)
    error: OSError | None = None
    for *_, where in found:
        try:
            return socket.create_connection((str(where[0]), port), timeout)
        except OSError as failed:
            error = failed
    raise error or OSError(f"{host} has no address")


def refusal(host: str, address: str, port: int) -> str | None:
    """Why an address may not be opened, or None."""
    if {f"{host}:{port}", f"{address}:{port}"} & _listed():
        return None
    found = ipaddress.ip_address(address.partition("%")[0])
    if all(one.is_global and not one.is_multicast for one in (found, _inner(found))):
        return None
    return f"{host} is {address}, an address of this machine or of a private network; only public ones may be opened."


def is_listed(url: str) -> bool:
    """Whether the deployment lists the host and port of an address as one that may be opened."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.hostname}:{port}" in _listed()


def _listed() -> set[str]:
    return {entry.strip() for entry in os.environ.get(ALLOWED, "").split(",") if entry.strip()}


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for: mapped, 6to4, Teredo or NAT64 (RFC 6052), else itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address


class _Http(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = _connected((self.host, self.port), self.timeout)


class _Https(http.client.HTTPSConnection):
    def connect(self) -> None:
        plain = _connected((self.host, self.port), self.timeout)
        self.sock = self._context.wrap_socket(plain, server_hostname=self.host)  # pyright: ignore[reportAttributeAccessIssue]


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects within the web; the connection of each is looked at as the first one is."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: object, code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise ToolFault(f"{req.full_url} leads to {newurl!r:.100}, which is no web address.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # pyright: ignore[reportArgumentType]


def _opener() -> urllib.request.OpenerDirector:
    """Only the web: no files, no proxies of the environment (they would connect where we must not)."""
    opener = urllib.request.OpenerDirector()
    handlers = (
        _HttpHandler, _HttpsHandler, _Redirects, urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.UnknownHandler,
    )  # fmt: skip
    for handler in handlers:
        opener.add_handler(handler())
    return opener
