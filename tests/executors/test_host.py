"""The process that runs one job: results, faults, references, secrets, signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import requests

from executors.base import ExecutorError
from executors.host import _speak_directly_to_this_machine, execute
from tests.executors.conftest import ENVIRONMENT, MakeJob, error_of, payload, result_of, run_host, start_host


def envelope(folder: Path, stage: str, result: dict) -> Path:
    path = folder / f"{stage}.json"
    path.write_text(json.dumps({"task_id": "task-1", "stage": stage, "result": result}), encoding="utf-8")
    return path


def test_result_is_written_and_exit_code_is_zero(job: MakeJob) -> None:
    one = job("echo", {"echo": {"a": [1, 2]}})
    code, _ = run_host(one)
    assert code == 0
    assert result_of(one)["payload"] == {"ok": True, "echo": {"a": [1, 2]}}
    assert not (one.out / "error.json").exists()


def test_references_to_ancestors_keep_their_type(job: MakeJob, tmp_path: Path) -> None:
    upstream = {"first": envelope(tmp_path, "first", {"items": [{"output": "x"}], "n": 3})}
    spec = {"echo": {"whole": "${first.result.items}", "part": "n=${first.result.n}", "id": "${first.task_id}"}}
    assert payload(job("echo", spec, upstream=upstream))["echo"] == {
        "whole": [{"output": "x"}], "part": "n=3", "id": "task-1",
    }  # fmt: skip


def test_unset_environment_reference_names_it(job: MakeJob) -> None:
    one = job("echo", {"echo": "${MLOC_NO_SUCH_NAME}"})
    code, output = run_host(one)
    assert code == 2
    assert error_of(one)["kind"] == "user"
    assert "${MLOC_NO_SUCH_NAME} is not set" in error_of(one)["message"]
    assert "Traceback" not in output


def test_value_that_does_not_fit_after_resolution_names_the_key(job: MakeJob, tmp_path: Path) -> None:
    upstream = {"first": envelope(tmp_path, "first", {"n": "many"})}
    with pytest.raises(ExecutorError, match=r"spec\.inference\.max_tokens: .*'many'"):
        execute(job("inference", {"inference": {"max_tokens": "${first.result.n}"}}, upstream=upstream))


def test_secrets_are_in_no_file_and_no_output(job: MakeJob) -> None:
    one = job("echo", {"echo": {"header": "Bearer ${API_KEY}", "key": "${API_KEY}"}})
    code, output = run_host(one, API_KEY="opensesame42")
    assert code == 0
    assert result_of(one)["payload"]["echo"] == {"header": "Bearer ***", "key": "***"}
    assert "opensesame42" not in output
    assert not [path for path in one.out.rglob("*") if path.is_file() and b"opensesame42" in path.read_bytes()]


def test_secrets_are_hidden_in_faults_and_exports(job: MakeJob) -> None:
    bad = job("inference", {"inference": {"max_tokens": "${API_KEY}"}}, name="bad")
    code, output = run_host(bad, API_KEY="opensesame42")
    assert code == 2
    assert "opensesame42" not in output + json.dumps(error_of(bad))
    export = job(
        "inference",
        {"data": {"items": ["say ${API_KEY}"]}, "inference": {"max_tokens": 2, "temperature": 0},
         "postprocess": {"jsonl_export": {"path": "x.jsonl"}}},
        name="export",
    )  # fmt: skip
    assert run_host(export, API_KEY="opensesame42")[0] == 0
    assert not [path for path in export.out.rglob("*") if path.is_file() and b"opensesame42" in path.read_bytes()]
    assert "say ***" in (export.out / "x.jsonl").read_text()


def test_unknown_task_type_lists_those_that_are_there(job: MakeJob) -> None:
    with pytest.raises(ExecutorError, match="Did you mean 'lora_sft'") as error:
        execute(job("lora_sftt", {}))
    assert "echo, evaluation, grpo, inference" in error.value.hint


def test_internal_fault_has_a_traceback_and_exit_code_one(job: MakeJob, tmp_path: Path) -> None:
    install_plugin(tmp_path, "broken", "raise ZeroDivisionError('oops')")
    one = job("broken", {})
    code, _ = run_host(one, PYTHONPATH=f"{ENVIRONMENT['PYTHONPATH']}:{tmp_path / 'site'}")
    assert code == 1
    assert error_of(one)["kind"] == "internal"
    assert "ZeroDivisionError: oops" in error_of(one)["traceback"]


def test_installed_package_adds_a_task_type_with_a_typed_section(job: MakeJob, tmp_path: Path) -> None:
    install_plugin(tmp_path, "shout", "return Result(payload={'ok': True, 'text': ctx.spec.plugin['text'].upper()})")
    path = f"{ENVIRONMENT['PYTHONPATH']}:{tmp_path / 'site'}"
    good = job("shout", {"plugin": {"text": "hey"}}, name="good")
    assert run_host(good, PYTHONPATH=path)[0] == 0
    assert result_of(good)["payload"]["text"] == "HEY"
    bad = job("shout", {"plugin": {"txt": "hey"}}, name="bad")
    assert run_host(bad, PYTHONPATH=path)[0] == 2
    assert "spec.plugin.text: Field required" in error_of(bad)["message"]


def test_missing_library_names_the_command_that_installs_it(job: MakeJob, tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "trl.py").write_text("raise ImportError('No module named trl', name='trl')")
    one = job("sft", {})
    code, _ = run_host(one, PYTHONPATH=f"{shadow}:{ENVIRONMENT['PYTHONPATH']}")
    assert code == 2
    assert error_of(one)["hint"] == "Run: pip install 'mloc-dagster[training]'"


def test_sigterm_ends_a_job_that_polls_stop(job: MakeJob, tmp_path: Path) -> None:
    body = "print('ready', flush=True)\n        ctx.stop.wait(60)\n        raise Interrupted"
    install_plugin(tmp_path, "waits", body)
    process = start_host(job("waits", {}), PYTHONPATH=f"{ENVIRONMENT['PYTHONPATH']}:{tmp_path / 'site'}")
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143


def test_host_and_its_children_die_with_the_parent(job: MakeJob, tmp_path: Path) -> None:
    body = """import subprocess
        child = subprocess.Popen(['sleep', '600'])
        (ctx.out / 'pids').write_text(f'{__import__("os").getpid()} {child.pid}')
        ctx.stop.wait(600)
        raise Interrupted"""
    install_plugin(tmp_path, "forks", body)
    one = job("forks", {})
    one.out.mkdir()
    (one.out / "job.json").write_text(one.model_dump_json())
    starter = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], start_new_session=True); time.sleep(600)"
    command = [sys.executable, "-c", starter, sys.executable, "-m", "executors.host", str(one.out / "job.json")]
    parent = subprocess.Popen(
        command, env=ENVIRONMENT | {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{tmp_path / 'site'}"}
    )
    wait_until(lambda: (one.out / "pids").exists() and len((one.out / "pids").read_text().split()) == 2)
    pids = (one.out / "pids").read_text().split()
    parent.kill()
    parent.wait()
    wait_until(lambda: all(gone(pid) for pid in pids))


def gone(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def install_plugin(folder: Path, name: str, body: str) -> None:
    """Lay out an installed distribution with one executor, as pip would."""
    site = folder / "site"
    info = site / f"mloc_{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mloc-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mloc.executors]\n{name} = mloc_{name}:TheExecutor\n")
    source = f"""
    from pydantic import BaseModel
    from executors.base import Interrupted, Result

    class Section(BaseModel):
        text: str

    class TheExecutor:
        name = {name!r}
        inline = False
        uses = frozenset({{"plugin.*"}})
        section = Section if {name == "shout"} else None

        def run(self, ctx):
            BODY
    """
    (site / f"mloc_{name}.py").write_text(textwrap.dedent(source).replace("BODY", body))


def test_what_is_said_to_this_machine_passes_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "intern.example")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    _speak_directly_to_this_machine()
    found = requests.utils.get_environ_proxies("http://127.0.0.1:8000/v1", no_proxy=None)
    assert found == {} and requests.utils.get_environ_proxies("http://intern.example", no_proxy=None) == {}
    assert requests.utils.get_environ_proxies("http://elsewhere.example", no_proxy=None)
