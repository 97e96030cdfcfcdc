"""Work that runs, however busy or idle, has a pulse; work that is stopped has none, and is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from executors.heartbeat import Pulse
from mloc_dagster.placement.failures import silence
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.failures.silence import LOST_AFTER, Silence, lost_after
from mloc_dagster.placement.local.work import RunInfo, StepFailed, run_step
from tests.placement.conftest import info, own_home, plan_of, run_all
from tests.waiting import wait_for

__all__ = ["info", "own_home"]


@pytest.mark.parametrize(("text", "seconds"), [("", 120.0), ("45.5", 45.5), ("0", None)])
def test_the_setting(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float | None) -> None:
    monkeypatch.setenv(LOST_AFTER, text)
    assert lost_after() == seconds


@pytest.mark.parametrize("text", ["2 minutes", "-1", "1", "inf", "nan"])
def test_a_setting_that_makes_no_sense_is_the_users_fault(
    monkeypatch: pytest.MonkeyPatch, info: RunInfo, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv(LOST_AFTER, text)
    plan = plan_of("  taskType: echo\n  echo: 1\n  timeoutSeconds: 60\n", tmp_path)
    with pytest.raises(StepFailed, match=f"{LOST_AFTER} is '{text}': write seconds, 3 or more") as caught:
        run_all(plan, info)
    assert caught.value.cause is Cause.USER


def test_only_silence_that_was_watched_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(silence.time, "monotonic", lambda: now)
    watch = Silence(5)
    for now, alive, over in ((1, False, False), (1000, False, False), (1002, False, False), (1003, False, True),
                             (1004, True, False), (1008, False, False)):  # fmt: skip
        assert watch.over(alive) is over, now
    assert not Silence(None).over(False)


def test_a_pulse_is_cpu_time_or_a_touch(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], stdout=-1)
    try:
        assert child.stdout and child.stdout.readline()
        time.sleep(0.3)
        pulse = Pulse(child.pid, beats)
        assert not pulse.felt()
        beats.touch()
        assert pulse.felt() and not pulse.felt()
    finally:
        child.kill()
        child.communicate()
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        pulse = Pulse(spinning.pid)
        wait_for(pulse.felt, "CPU time", 10)
        os.kill(spinning.pid, signal.SIGSTOP)
        wait_for(lambda: psutil.Process(spinning.pid).status() == psutil.STATUS_STOPPED, "the stop", 10)
        pulse.felt()
        assert not pulse.felt()
    finally:
        spinning.kill()
        spinning.wait()


def step_of(how: str, folder: Path, info: RunInfo, times: int = 9) -> None:
    plan = plan_of(f"  taskType: fail\n  plugin: {{how: {how}, times: {times}, count: {folder / 'count'}}}\n", folder)
    run_step(plan, plan.steps[0], info, lambda progress: None)


def test_stopped_work_is_killed_and_lost(
    info: RunInfo, tmp_path: Path, fail: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOST_AFTER, "3")
    begun = time.monotonic()
    with pytest.raises(StepFailed, match="fail gave no sign of life for 3 s") as caught:
        step_of("stopped", tmp_path, info)
    assert caught.value.cause is Cause.WORKER_LOST and time.monotonic() - begun < 20
    assert not psutil.pid_exists(int((tmp_path / "count").read_text()))


def test_work_that_lets_no_thread_of_its_own_run_is_not_lost(
    info: RunInfo, tmp_path: Path, fail: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOST_AFTER, "3")
    step_of("busy", tmp_path, info)


def test_idle_work_is_not_lost(info: RunInfo, tmp_path: Path, nap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOST_AFTER, "3")
    run_all(plan_of("  taskType: nap\n  plugin: {seconds: 4}\n", tmp_path), info)
