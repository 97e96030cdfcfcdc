"""The door: nothing of the port opens without a token, but two health checks and the page where one logs in."""

from __future__ import annotations

import asyncio
import html
import re
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from mloc_dagster.service import tokens as kept
from mloc_dagster.service.problems import Problem, forbidden
from mloc_dagster.service.tokens import Sessions, Token, Tokens

LOGIN = "/login"
_OPEN = frozenset({"/healthz", "/health", "/readyz"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_LONGEST_FORM = 4096
_LOOK_SECONDS = 2.0
"""Between two looks whether the token of an open websocket is still good."""
_REVOKED = 1008
"""Policy violation (RFC 6455, 7.4.1)."""
_LONGEST_BODY = 17 << 20
"""Of any route but uploads; those of tasks have smaller bounds of their own."""
_UPLOAD = re.compile(r"/api/v1/results/[^/]+/([^/]+/)?files(/[^/]+)?")
"""These count what comes themselves."""
_OF_WORKERS = re.compile(r"/api/v1/pull(/|$)")
_WAY_OUT = "send Authorization: Bearer TOKEN; `mloc token url` prints an address that logs a browser in"
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>MLOC</title>
<body style="font-family: system-ui; max-width: 36rem; margin: 15vh auto">
<h1>MLOC</h1><p>{told}</p>
<form method="post" action="/login">
<input name="token" type="password" size="50" placeholder="Token" autofocus required>
<button>Log in</button></form>
<p>On the machine of the service, <code>mloc token url</code> prints an address that logs a browser in.</p>
</body></html>
"""
_PAGE_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


class Guard:
    """ASGI middleware: puts the token of a request into `scope["mloc.token"]`, or answers 401 or 403 itself."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app, self._tokens, self._sessions = app, tokens, Sessions(tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] == LOGIN:
            answer = await self._login(Request(scope, receive))
            await answer(scope, receive, send)
            return
        try:
            scope["mloc.token"] = self._token(scope)
        except Problem as problem:
            await _refuse(problem, scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._watched(scope, receive, send)
            return
        if scope["type"] == "http" and _UPLOAD.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length[:20]) > _LONGEST_BODY:
            problem = Problem(413, f"the body is larger than {_LONGEST_BODY >> 20} MiB", "send less at once")
            await _refuse(problem, scope, receive, send)
            return
        await self._app(scope, _bounded(receive), send)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a websocket as long as its token is good; who holds one open does not outlast that."""
        over = asyncio.Event()

        async def received() -> Message:
            coming, revoked = asyncio.ensure_future(receive()), asyncio.ensure_future(over.wait())
            await asyncio.wait({coming, revoked}, return_when=asyncio.FIRST_COMPLETED)
            revoked.cancel()
            if coming.done():
                return coming.result()
            coming.cancel()
            return {"type": "websocket.disconnect", "code": _REVOKED}

        async def sent(message: Message) -> None:
            if not over.is_set():  # the client has been told that it is over
                await send(message)

        async def watch() -> None:
            await self._until_revoked(scope)
            over.set()
            with suppress(Exception):  # the client has gone by itself
                await send({"type": "websocket.close", "code": _REVOKED, "reason": "the token was revoked"})

        watching = asyncio.create_task(watch())
        try:
            await self._app(scope, received, sent)
        finally:
            if over.is_set():
                await watching
            watching.cancel()

    async def _until_revoked(self, scope: Scope) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self._token(scope)
            except Problem:
                return

    def _token(self, scope: Scope) -> Token:
        """Return the token of a request; raises Problem when there is none, or when it does not open this."""
        headers = Headers(scope=scope)
        given = headers.get("authorization")
        if given is not None:
            scheme, _, text = given.partition(" ")
            token = self._tokens.check(text.strip()) if scheme.lower() == "bearer" else None
        else:
            token = self._sessions.check(_cookie(headers, cookie_name(scope)))
            if token and (scope["type"] == "websocket" or scope["method"] not in _SAFE or scope["path"] == "/graphql"):
                _check_origin(headers)
        if token is None:
            error = ', error="invalid_token"' if given is not None else ""
            what = "this token is not known here" if given is not None else "a token is needed"
            raise Problem(401, what, _WAY_OUT, headers={"WWW-Authenticate": f'Bearer realm="mloc"{error}'})
        needed = _needed(scope)
        if not token.allows(needed):
            raise forbidden(token, needed)
        return token

    async def _login(self, request: Request) -> Response:
        """Exchange a code (in the address) or a token (in a form) for a cookie, and show the UI."""
        code = request.query_params.get("code")
        if request.method == "POST":
            token = self._tokens.check(await _posted(request))
        elif code is None:
            return _page("Log in with a token.", 200)
        else:
            token = self._tokens.use_code(code)
        if token is None:
            return _page("This code was used or is too old." if code else "This token is not known here.", 401)
        answer = RedirectResponse("/", 303, headers=_PAGE_HEADERS)
        answer.set_cookie(
            cookie_name(request.scope), self._sessions.begin(token), max_age=int(kept.SESSION_SECONDS), path="/",
            httponly=True, samesite="strict", secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer


def cookie_name(scope: Scope) -> str:
    """Return the name of the cookie; browsers keep one jar for all ports of a host, so it holds the port."""
    return f"mloc_session_{scope['server'][1]}"


def _bounded(receive: Receive) -> Receive:
    """A body that says nothing of its length ends where it is too long: Dagster's own routes read all that comes."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > _LONGEST_BODY else message

    return bounded


def _needed(scope: Scope) -> kept.Scope:
    """What opens a path. What GraphQL may change is decided by Dagster, from the rights of the request's context."""
    if _OF_WORKERS.match(scope["path"]):
        return kept.WORKER
    if scope["type"] == "http" and scope["path"] != "/graphql" and scope["method"] not in _SAFE:
        return "submit"
    return "read"


def _cookie(headers: Headers, name: str) -> str:
    return cookie_parser(headers.get("cookie", "")).get(name, "")  # bears cookies of others that are no good


def _check_origin(headers: Headers) -> None:
    """A cookie is sent from every page of the same host, whatever its port: only our own pages may change anything."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if (origin is not None and urlsplit(origin).netloc != headers.get("host")) or site in ("same-site", "cross-site"):
        what = f"a page of {origin[:200] if origin else 'another address'} may not do this"
        raise Problem(403, what, "open the UI of this service itself")


async def _posted(request: Request) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_FORM:
            return ""
    return parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(problem.response())
        return
    wants_page = scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")
    answer = _page(problem.what, problem.status, problem.headers) if wants_page else problem.response()
    await answer(scope, receive, send)


def _page(told: str, status: int, headers: dict[str, str] | None = None) -> HTMLResponse:
    return HTMLResponse(_PAGE.format(told=html.escape(told)), status, headers={**_PAGE_HEADERS, **(headers or {})})
