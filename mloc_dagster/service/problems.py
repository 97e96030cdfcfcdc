"""What is wrong with a request, as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from mloc_dagster.service.tokens import Scope, Token
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import Fault

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that cannot be served: the status, what is wrong, the way out, and the faults of a task file."""

    def __init__(
        self,
        status: int,
        what: str,
        way_out: str = "",
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
        **more: Json,
    ) -> None:
        super().__init__(what)
        self.status, self.what, self.way_out = status, what, way_out
        self.faults, self.headers, self.more = tuple(faults), dict(headers or {}), more

    def as_dict(self) -> dict[str, Json]:
        """Return the parts of the answer."""
        told: dict[str, Json] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.what,
        }
        if self.way_out:
            told["hint"] = self.way_out
        if self.faults:
            told["faults"] = [as_json(fault) for fault in self.faults]
        return {**told, **self.more}

    def response(self) -> Response:
        """Return the answer."""
        return Response(
            json.dumps(self.as_dict(), ensure_ascii=False, default=str).encode("utf-8", "replace"),
            status_code=self.status,
            headers=self.headers,
            media_type=MEDIA_TYPE,
        )


def forbidden(token: Token, needed: Scope) -> Problem:
    """Return the problem of a token that does not open what it is sent for."""
    challenge = f'Bearer realm="mloc", error="insufficient_scope", scope="{needed}"'
    what = f"the token {token.name!r} has the scope {token.scope}; this needs {needed}"
    way_out = f"make one with: mloc token create NAME --scope {needed}"
    return Problem(403, what, way_out, headers={"WWW-Authenticate": challenge}, missing_scope=needed)


def of_faults(faults: Sequence[Fault]) -> Problem:
    """Return the problem of a task file: 400 when it cannot be read as YAML at all, else 422."""
    unreadable = any(not fault.path and fault.what.startswith(_UNREADABLE) for fault in faults)
    count = len(faults)
    what = f"{count} fault{'s' if count != 1 else ''} in the task file; nothing was run"
    return Problem(400 if unreadable else 422, what, faults=faults)


_UNREADABLE = ("not readable as YAML", "the file is not readable YAML")


def as_json(fault: Fault) -> dict[str, Json]:
    """Return a fault or a warning under the names of the answers, with the line that the command prints."""
    parts = fault.as_dict()
    return {
        "file": parts["file"],
        "line": parts["line"],
        "column": parts["column"],
        "path": parts["path"],
        "reason": parts["what"],
        "value": parts["value"],
        "hint": parts["way_out"],
        "text": str(fault),
    }


async def answer(_request: Request, error: Exception) -> Response:
    """Turn a Problem that an endpoint raised into its answer."""
    assert isinstance(error, Problem)
    return error.response()
