"""Commands as they should be, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from executors.base import ExecutorError
from executors.sandbox import Limits, run
from executors.sandbox.backend import VARIABLE
from tests.executors.sandbox.conftest import Contained


def test_python_source_runs_with_the_packages_of_this_python(contained: Contained, work: Path) -> None:
    (work / "mine.py").write_text("value = 41")
    ended = contained("import mine, numpy\nprint(numpy.add(mine.value, 1), input())\nopen('out', 'w').write('x')", "in")
    assert (ended.stdout, ended.stderr, ended.exit_code, ended.ended_by) == ("42 in\n", "", 0, None)
    assert (work / "out").read_text() == "x"
    assert sorted(os.listdir(work)) == ["mine.py", "out"]


def test_a_fault_of_the_command_is_its_own(contained: Contained) -> None:
    ended = contained("raise ValueError('so')")
    assert ended.exit_code == 1 and ended.ended_by is None
    assert 'File "/tmp/main.py", line 1' in ended.stderr and "ValueError: so" in ended.stderr
    assert contained(["sh", "-c", "exit 7"]).exit_code == 7
    assert contained(["sh", "-c", "kill -TERM $$"]).exit_code == 143


def test_a_command_that_is_not_there_is_named(contained: Contained) -> None:
    ended = contained(["no-such-program", "-x"])
    assert ended.exit_code == 127 and ended.stderr == "no-such-program: command not found\n"


def test_a_command_that_does_not_read_its_input_ends(contained: Contained) -> None:
    assert contained(["true"], stdin="x" * 1_000_000).exit_code == 0


def test_no_sandbox_means_no_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("executors.sandbox.backend._refusal", lambda backend: backend.refusal())
    with pytest.raises(ExecutorError) as raised:
        run(["touch", "ran"], work=work, limits=Limits())
    assert "bubblewrap: bwrap is not installed; namespaces: unshare is not installed" in raised.value.what
    assert "apt-get install bubblewrap" in raised.value.hint and "MLOC_SANDBOX=none" in raised.value.hint
    assert not (work / "ran").exists()


def test_an_unknown_sandbox_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    with pytest.raises(ExecutorError, match="'off', which is no sandbox"):
        run(["true"], work=work, limits=Limits())


def test_unprotected_only_when_the_deployment_says_so(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "none")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    ended = run("import os; print(os.environ.get('HF_TOKEN'), os.getcwd())", work=work, limits=Limits())
    assert ended.backend == "none" and ended.stdout == f"None {work}\n"


def test_unprotected_limits_hold(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "none")
    assert run(["sleep", "60"], work=work, limits=Limits(seconds=0.5)).ended_by == "time"
    source = "import os, time\nfor _ in range(5): os.fork()\ntime.sleep(5)"
    assert run(source, work=work, limits=Limits(processes=8, seconds=6)).ended_by == "processes"


@pytest.mark.parametrize("which", ["missing", "home", "root", "deployment"])
def test_a_work_folder_that_opens_too_much_is_refused(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_HOME", str(tmp_path))
    folders = {"missing": tmp_path / "no", "home": Path.home(), "root": Path("/"), "deployment": tmp_path}
    with pytest.raises(ExecutorError, match="no folder" if which == "missing" else "must stay shut"):
        run(["true"], work=folders[which], limits=Limits())


def test_nothing_to_run_is_refused(contained: Contained) -> None:
    with pytest.raises(ExecutorError, match="no command to run"):
        contained("")


def test_a_python_whose_folder_is_a_symbolic_link(contained: Contained, work: Path, tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.prefix)
    script = f"""
from pathlib import Path
from executors.sandbox import Limits, run
ended = run("import sys, numpy; print(sys.prefix)", work=Path({str(work)!r}), limits=Limits(seconds=30))
print(ended.stdout, ended.stderr, ended.backend)
"""
    here = tmp_path / "python" / "bin" / "python"
    done = subprocess.run([here, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(Path(sys.prefix).resolve()), contained([sys.executable, "-V"]).backend], done
