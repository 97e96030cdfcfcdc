"""A person in the web UI of `mloc up`: logs in with a token, launches a task, and finds runs, lineage, curves, logs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from mloc_dagster.service.tokens import Tokens, local_file, local_token
from mloc_dagster.store.home import Home
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine; install the package chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

TASK = """\
apiVersion: mloc/v1
metadata: {{name: browse, owner: alice, project: demo}}
spec:
  model: {{source: {{type: local, identifier: {model}}}}}
  stages:
    - name: tune
      taskType: lora_sft
      data: {{prompts: [{{prompt: "copy: ab ->", response: " AB"}}, {{prompt: "copy: cd ->", response: " CD"}}]}}
      training: {{max_steps: 4, batch_size: 2, logging_steps: 1, max_seq_length: 48}}
    - name: answers
      taskType: inference
      data: ["copy: ab ->"]
      inference: {{max_tokens: 4, temperature: 0}}
      model: {{adapters: [{{type: lora, apply: merge, path: "${{tune.result.final_lora_path}}"}}]}}
"""
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`mloc up` on a free port, over a folder with one task file; yields its address and home."""
    folder = tmp_path_factory.mktemp("service")
    model = folder / "model"
    make_tiny_llama(model, steps=0)
    (folder / "task_specs").mkdir()
    (folder / "task_specs" / "browse.yaml").write_text(TASK.format(model=model), "utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MLOC_HOME": str(folder / ".mloc"), "OMP_NUM_THREADS": "1"}
    environment.pop("DAGSTER_HOME", None)
    command = [
        sys.executable,
        "-c",
        "from mloc_dagster.cli import main; main()",
        "up",
        "--port",
        str(port),
        "--on",
        "cpu",
    ]
    up = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address)
        yield address, folder / ".mloc"
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)


def test_launch_turns_green_and_shows_lineage(service: tuple[str, Path], tmp_path: Path) -> None:
    """Log in with a token, find the job, click "Materialize all", wait for success; then find the run in the list, its
    logs, model → adapter → responses on the lineage page, and the loss curve of the training."""
    address, home = service
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.goto(f"{address}/runs")
        page.get_by_placeholder("Token").wait_for(timeout=60_000)
        page.get_by_placeholder("Token").fill("mloc_00000000_wrong")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("This token is not known here.").wait_for(timeout=60_000)
        page.get_by_placeholder("Token").fill(local_file(Home(home)).read_text().strip())
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(lambda url: "login" not in url)
        page.goto(f"{address}/jobs")
        page.get_by_text("browse", exact=True).first.wait_for(timeout=60_000)
        page.goto(f"{address}/locations/mloc@mloc/jobs/browse")
        page.get_by_role("button", name="Materialize all").first.click(timeout=60_000)
        responses = _wait_for_file(home / "results", "*/answers/responses.json")
        run_id = responses.parts[-3]
        page.goto(f"{address}/runs/{run_id}")
        page.get_by_text("Success", exact=True).first.wait_for(timeout=60_000)
        page.get_by_text("RUN_SUCCESS", exact=False).first.wait_for(timeout=60_000)
        page.goto(f"{address}/runs")
        page.get_by_text(run_id[:8], exact=False).first.wait_for(timeout=60_000)
        page.goto(f"{address}/assets/browse/tune?view=overview")
        page.get_by_text("loss_curve", exact=False).first.wait_for(timeout=60_000)
        page.goto(f"{address}/login?code={_code(home)}")  # the address that `mloc up` prints does as well
        page.wait_for_url(lambda url: "code=" not in url)
        page.goto(f"{address}/assets/browse/answers?view=lineage&lineageScope=upstream")
        for name in ("tune", "answers"):
            page.get_by_text(name, exact=True).first.wait_for(timeout=60_000)
        page.get_by_text("model", exact=False).first.wait_for(timeout=60_000)
        page.wait_for_timeout(1500)
        picture = Path(os.environ.get("MLOC_PICTURE", tmp_path / "lineage.png"))
        page.screenshot(path=str(picture))
        stranger = browser.new_context().new_page()  # another browser: its pages stay closed
        for path in ("/", f"/runs/{run_id}", "/assets/browse/answers"):
            assert stranger.goto(f"{address}{path}").status == 401
            assert stranger.get_by_placeholder("Token").is_visible()
        browser.close()
    assert picture.stat().st_size > 10_000


def _code(home: Path) -> str:
    kept = Home(home)
    return Tokens(kept).new_code(local_token(kept).id)


def _wait_for(address: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{address}/readyz", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.3)
    raise AssertionError("mloc up did not answer")


def _wait_for_file(folder: Path, pattern: str, seconds: float = 180) -> Path:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = next(folder.glob(pattern), None)
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"{pattern} did not appear below {folder}")
