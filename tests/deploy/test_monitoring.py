"""Alerts and dashboards: promtool takes the rules, and every metric that is asked for is one that /metrics tells."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mloc_dagster.placement.workers.room import VERBS
from mloc_dagster.service import gpus
from tests.docker_engine import ROOT
from tests.service.conftest import Service, service

__all__ = ["service"]
FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
OF_PROMETHEUS = {"up"}
_NAME = re.compile(r"\b(?:mloc_\w+|up)\b")
_SUFFIXES = {"counter": ("_total",), "summary": ("_sum", "_count"), "histogram": ("_sum", "_count", "_bucket")}
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")


def rules() -> list[dict]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def targets() -> Iterator[tuple[str, str, str]]:
    """Title, datasource and query of each panel's queries."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']} {target['refId']}", target["datasource"]["uid"], target["expr"]


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60)


@promtool
def test_configuration() -> None:
    for arguments in (["config", "--syntax-only", "prometheus.yml"], ["rules", "alerts.yml"]):
        done = tool("check", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_each_alert_comes_when_it_should() -> None:
    done = tool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {
        case["alertname"]
        for test in yaml.safe_load((FOLDER / "alerts_test.yml").read_text("utf-8"))["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tested == {rule["alert"] for rule in rules()}


def test_alerts_say_what_to_do() -> None:
    for rule in rules():
        assert {"summary", "action"} <= rule["annotations"].keys() and rule["labels"]["severity"], rule["alert"]


def test_every_metric_that_is_asked_for_is_told(service: Service) -> None:
    answer = service("GET", "/metrics", "read")
    assert answer.status_code == 200
    told = OF_PROMETHEUS | set(re.findall(r'"(mloc_gpu_\w+)"', Path(gpus.__file__).read_text("utf-8")))  # if it has any
    for family in text_string_to_metric_families(answer.text):
        told |= {family.name + suffix for suffix in _SUFFIXES.get(family.type, ("",))}
    asked = {f"alert {rule['alert']}": rule["expr"] for rule in rules()}
    asked |= {title: query for title, uid, query in targets() if uid == "mloc-prometheus"}
    assert len(asked) > 20
    unknown = {title: set(_NAME.findall(query)) - told for title, query in asked.items()}
    assert {title: names for title, names in unknown.items() if names} == {}
    missing = {name for name in told - OF_PROMETHEUS if not any(name in query for query in asked.values())}
    assert {name for name in missing if not name.endswith("_bucket")} == set(), "nobody looks at them"


@promtool
def test_queries_are_queries(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The parser of Prometheus takes each query of a dashboard, as a rule."""
    queries = [query for _, uid, query in targets() if uid == "mloc-prometheus"]
    file = tmp_path_factory.mktemp("rules") / "queries.yml"
    named = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": named}]}))
    done = tool("check", "rules", str(file))
    assert done.returncode == 0 and f"{len(queries)} rules found" in done.stdout, done.stdout + done.stderr


def test_labels_and_values_are_ours() -> None:
    statuses = {"ACCEPTED", "QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING", "succeeded", "failed",
                "canceled"}  # fmt: skip
    states = {"silent", *VERBS.values(), "loading", "busy", "idle"}
    for query in [*(rule["expr"] for rule in rules()), *(query for _, _, query in targets())]:
        for values in re.findall(r'status=~?"([^"]+)"', query):
            assert set(values.split("|")) <= statuses, query
        for value in re.findall(r'state="([^"]+)"', query):
            assert value in states, query


def test_panels_are_told_apart_and_have_a_datasource() -> None:
    known = {
        source["uid"]
        for source in yaml.safe_load((FOLDER / "grafana/provisioning/datasources/mloc.yaml").read_text("utf-8"))[
            "datasources"
        ]
    }
    assert len(DASHBOARDS) == 2
    for path in DASHBOARDS:
        board = json.loads(path.read_text("utf-8"))
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(set(places)) == len(places) == len({panel["id"] for panel in board["panels"]})
        assert {panel["datasource"]["uid"] for panel in board["panels"]} <= known
