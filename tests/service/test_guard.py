"""Nothing of the port opens without a token, and a token opens what its scope says."""

from __future__ import annotations

import json
import socket
import stat
from urllib.parse import urlsplit

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from mloc_dagster.service.tokens import LOCAL, Tokens, local_file
from tests.service.conftest import Service

GUARDED = [
    ("GET", "/"), ("GET", "/runs"), ("GET", "/graphql"), ("POST", "/graphql"), ("GET", "/server_info"),
    ("GET", "/dagit_info"), ("GET", "/favicon.png"), ("GET", "/_next/static/x.js"), ("GET", "/logs/a/b.out"),
    ("GET", "/download_debug/x"), ("GET", "/notebook"), ("POST", "/report_asset_materialization/a"),
    ("POST", "/report_asset_check/a"), ("POST", "/report_asset_observation/a"), ("GET", "/api/v1/tasks"),
    ("POST", "/api/v1/tasks"), ("POST", "/api/v1/tasks/bulk"), ("GET", "/api/v1/tasks/x"),
    ("DELETE", "/api/v1/tasks/x"), ("GET", "/api/v1/nothing"), ("GET", "/healthz/x"), ("GET", "//healthz"),
    ("OPTIONS", "/graphql"), ("PUT", "/api/v1/tasks"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_without_a_token_it_is_closed(service: Service, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer mloc_00000000_guess"}, {"Authorization": "Basic YTpi"}):
        answer = service(method, path, None, headers=headers)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith('Bearer realm="mloc"')
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "mloc token url" in answer.json()["hint"]


def test_health_is_open_and_says_nothing_else(service: Service) -> None:
    assert service("GET", "/healthz", None).json() == {"status": "ok"}
    assert service("GET", "/readyz", None).json() == {"status": "ready"}


def test_the_path_cannot_be_disguised(service: Service) -> None:
    """What the guard sees is what is routed: an encoded or dotted path is no way around it."""
    host, port = urlsplit(service.address).netloc.split(":")
    for path in ("/healthz/../graphql", "/%2e/graphql", "/healthz%2f..%2fgraphql", "/healthz;/graphql"):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 401"), path


def test_cookies_of_others_do_no_harm(service: Service) -> None:
    """On one host all ports share the cookies: what another tool has set stands beside ours."""
    port = urlsplit(service.address).port
    code = Tokens(service.home).new_code(Tokens(service.home).all()[0].id)
    session = service("GET", f"/login?code={code}", None).cookies[f"mloc_session_{port}"]
    for other in ("path=/x", "flag", 'a="b', "domain=x; flag; b[]={1}"):
        headers = {"Cookie": f"{other}; mloc_session_{port}={session}"}
        assert service("GET", "/server_info", None, headers=headers).status_code == 200, other


def test_no_route_reads_a_body_without_end(service: Service) -> None:
    headers = {"Content-Type": "application/json"}

    def asked(filling: int) -> bytes:
        return b'{"query": "{ __typename }", "variables": {"x": "%s"}}' % (b"x" * filling)

    def in_chunks(body: bytes) -> int:
        """The status of a body whose length is not said; 0 when the server hangs up."""
        chunks = (body[start : start + (1 << 20)] for start in range(0, len(body), 1 << 20))
        try:
            return service("POST", "/graphql", "read", data=chunks, headers=headers).status_code
        except requests.ConnectionError:
            return 0

    assert service("POST", "/graphql", "read", data=asked(18 << 20), headers=headers).status_code == 413
    assert in_chunks(asked(1 << 20)) == 200 and in_chunks(asked(18 << 20)) != 200
    assert service("GET", "/healthz", None).status_code == 200


def test_scopes(service: Service) -> None:
    assert service("GET", "/api/v1/tasks", "read").status_code == 200
    for method, path in (("POST", "/api/v1/tasks"), ("DELETE", "/api/v1/tasks/x"), ("POST", "/report_asset_check/a")):
        answer = service(method, path, "read")
        assert answer.status_code == 403 and answer.json()["missing_scope"] == "submit"
        assert 'error="insufficient_scope", scope="submit"' in answer.headers["WWW-Authenticate"]
    assert service("DELETE", "/api/v1/tasks/x", "submit").status_code == 404


def test_scopes_hold_in_graphql(service: Service) -> None:
    """Looking is for all; who may only read launches nothing, who may submit deletes nothing."""
    launch = """mutation { launchRun(executionParams: {runConfigData: {}, selector: {jobName: "no_such",
        repositoryLocationName: "mloc", repositoryName: "mloc"}}) { __typename } }"""
    delete = 'mutation { deletePipelineRun(runId: "no-such") { __typename } }'

    def asked(scope: str, query: str) -> str:
        told = service("POST", "/graphql", scope, json={"query": query}).json()
        return next(iter(told["data"].values())).get("__typename")

    assert service("POST", "/graphql", "read", json={"query": "{version}"}).json()["data"]["version"]
    assert asked("read", launch) == "UnauthorizedError" and asked("read", delete) == "UnauthorizedError"
    assert asked("submit", launch) == "PipelineNotFoundError" and asked("submit", delete) == "UnauthorizedError"
    assert asked("admin", delete) == "RunNotFoundError"


def test_a_code_opens_one_browser_once(service: Service) -> None:
    tokens = Tokens(service.home)
    local = next(token for token in tokens.all() if token.name == LOCAL)
    path = f"/login?code={tokens.new_code(local.id)}"
    answer = service("GET", path, None)
    assert answer.status_code == 303 and answer.headers["Location"] == "/"
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert service("GET", path, None).status_code == 401
    jar = {"Cookie": cookie.partition(";")[0]}
    assert "<html" in service("GET", "/", None, headers=jar).text
    query = {"query": "{version}"}
    assert service("POST", "/graphql", None, headers=jar, json=query).status_code == 200
    foreign = {**jar, "Origin": "http://127.0.0.1:1"}
    assert service("POST", "/graphql", None, headers=foreign, json=query).status_code == 403
    navigated = {**jar, "Sec-Fetch-Site": "same-site"}
    assert service("GET", "/graphql?query={version}", None, headers=navigated).status_code == 403


def test_a_revoked_token_ends_its_sessions(service: Service) -> None:
    tokens = Tokens(service.home)
    written = tokens.create("guest", "read")
    answer = service("POST", "/login", None, data={"token": written})
    jar = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    assert service("GET", "/api/v1/tasks", None, headers=jar).status_code == 200
    assert service("POST", "/api/v1/tasks", None, headers=jar).status_code == 403
    assert tokens.revoke("guest")
    assert service("GET", "/api/v1/tasks", None, headers=jar).status_code == 401
    bearer = {"Authorization": f"Bearer {written}"}
    assert service("GET", "/api/v1/tasks", None, headers=bearer).status_code == 401
    assert service("POST", "/login", None, data={"token": written}).status_code == 401


def test_a_browser_is_shown_where_to_log_in(service: Service) -> None:
    answer = service("GET", "/runs", None, headers={"Accept": "text/html"})
    assert answer.status_code == 401 and "<form" in answer.text and "WWW-Authenticate" in answer.headers
    assert "<form" in service("GET", "/login", None).text
    assert service("POST", "/login", None, data={"token": "x" * 10_000}).status_code == 401


def test_websockets_need_a_token(service: Service) -> None:
    address = service.address.replace("http", "ws") + "/graphql"
    with pytest.raises(InvalidStatus) as refused:
        connect(address, subprotocols=["graphql-ws"])  # pyright: ignore[reportArgumentType]
    assert refused.value.response.status_code == 401
    opened = {"Authorization": f"Bearer {service.tokens['read']}"}
    with connect(address, subprotocols=["graphql-ws"], additional_headers=opened) as socket_:  # pyright: ignore
        socket_.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket_.recv(timeout=20))["type"] == "connection_ack"


@pytest.mark.parametrize("by", ["bearer", "cookie"])
def test_an_open_websocket_ends_soon_after_its_token_is_revoked(service: Service, by: str) -> None:
    tokens, name = Tokens(service.home), f"socket-{by}"
    written = tokens.create(name, "read")
    headers = {"Authorization": f"Bearer {written}"}
    if by == "cookie":
        answer = service("POST", "/login", None, data={"token": written})
        headers = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0], "Origin": service.address}
    address = service.address.replace("http", "ws") + "/graphql"
    with connect(address, subprotocols=["graphql-ws"], additional_headers=headers, origin=None) as socket_:  # pyright: ignore
        socket_.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket_.recv(timeout=20))["type"] == "connection_ack"
        with pytest.raises(TimeoutError):
            while True:  # it stays open as long as the token is good
                socket_.recv(timeout=5)
        tokens.revoke(name)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                socket_.recv(timeout=30)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008


def test_only_hashes_are_kept_and_nothing_is_logged(service: Service) -> None:
    kept = service.home.root / "tokens.json"
    for path in (kept, local_file(service.home)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code = Tokens(service.home).new_code(Tokens(service.home).all()[0].id)
    service("GET", f"/login?code={code}x", None)
    secrets = [written.split("_", 2)[2] for written in service.tokens.values()] + [code]
    for file in (kept, service.home.root / "web.log"):
        text = file.read_text()
        assert not any(secret in text for secret in secrets)


def test_a_name_is_taken_once(service: Service) -> None:
    with pytest.raises(ValueError, match="there is a token 'read' already"):
        Tokens(service.home).create("read", "read")
    assert not Tokens(service.home).revoke("nobody")
    assert (
        requests.get(f"{service.address}/api/v1/tasks", headers={"Authorization": "Bearer"}, timeout=10).status_code
        == 401
    )
