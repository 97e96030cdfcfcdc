"""A delivery that failed is done later, and the work is not."""

from __future__ import annotations

from pathlib import Path

from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.replay import replay
from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.placement.failures.cause import CAUSE
from mloc_dagster.placement.failures.letters import dead_letters
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get, status, write
from tests.delivery.keeper import running_keeper

SENT = """\
apiVersion: mloc/v1
metadata: {{name: sent, owner: ann}}
spec:
  taskType: nap
  plugin: {{seconds: 0}}
  retry: {{max_retries: 3, backoff: 0.1}}
  output:
    destination: {{type: http, url: "{url}", retries: 1, retryBackoffSec: 0.01, timeoutSec: 5}}
"""


def test_a_replay_delivers_what_was_made_and_does_not_make_it_again(
    instance: DagsterInstance, home: Home, nap: None, tmp_path: Path
) -> None:
    with running_keeper() as keeper:
        path = write(tmp_path / "sent.yaml", SENT, url=keeper.address)
        keeper.manners = ["fail", "fail"]
        run_id = submit_file(instance, home, compile_plan(load_file(path)))
        assert status(instance, run_id) is DagsterRunStatus.FAILURE
        assert get(instance, run_id).tags[CAUSE] == "delivery" and len(keeper.asked) == 2
        (letter,) = dead_letters(instance)
        assert (letter.run_id, letter.cause, letter.stage) == (run_id, "delivery", "nap")
        folder = home.run_folder(run_id, "nap")
        made = {name: (folder / name).stat().st_mtime_ns for name in ("pids", "responses.json")}
        keeper.manners = ["accept and break off"]
        again = replay(instance, get(instance, run_id))
        assert status(instance, again) is DagsterRunStatus.SUCCESS
        assert (folder / "pids").stat().st_mtime_ns == made["pids"]
        assert [key for key, _ in keeper.asked] == [f"{run_id}/nap"] * 4
        assert [code for _, code in keeper.asked] == [503, 503, 201, 409]
        assert keeper.accepted == {f"{run_id}/nap": 1} and dead_letters(instance) == []
