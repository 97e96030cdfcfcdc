"""The OpenAPI document is that of the routes that serve, and no request that it allows ends in a fault of ours."""

from __future__ import annotations

import re

import hypothesis
import schemathesis
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from mloc_dagster.spec.base import Json
from tests.service.conftest import Service

EXAMPLES = 12
_ENDLESS = re.compile(r"/(logs|events|next)$")


def document(service: Service) -> dict[str, Json]:
    return service("GET", "/api/v1/openapi.json", "read").json()


def scope_of(path: str) -> str:
    return "worker" if "/pull" in path else "admin"


def test_the_document_is_valid_and_tells_of_every_route(service: Service) -> None:
    told = document(service)
    validate(told)
    assert told["openapi"].startswith("3.1")
    for path, methods in told["paths"].items():
        somewhere = re.sub(r"{\w+}", "x", path)
        for method, operation in methods.items():
            answer = service(method.upper(), somewhere, scope_of(path))
            assert str(answer.status_code) in operation["responses"], f"{method} {somewhere}: {answer.text}"
        other = service("PATCH", somewhere, scope_of(path))
        assert other.status_code == 405 and {m.upper() for m in methods} <= set(other.headers["Allow"].split(", "))
    names = [operation["operationId"] for methods in told["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))


def test_no_request_ends_in_a_fault_of_ours(service: Service) -> None:
    """What is not allowed is tried as well; the streams of one task are looked at elsewhere."""
    schema = schemathesis.openapi.from_dict(document(service))
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if _ENDLESS.search(operation.path):
            continue
        tried.append(operation.label)

        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            headers = {"Authorization": f"Bearer {service.tokens[scope_of(case.path)]}"}
            case.call_and_validate(base_url=service.address, headers=headers, checks=checks, timeout=30)

        send()
    assert len(tried) > 20
