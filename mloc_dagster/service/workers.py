"""`/api/v1/workers`: what there is, who holds what of it, and taking a worker out of service."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mloc_dagster.client import shapes
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.ledger.rows import worker_rows
from mloc_dagster.placement.queue.signals import knock
from mloc_dagster.placement.workers.room import VERBS
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.endpoint import Endpoint, Given
from mloc_dagster.service.problems import Problem


class WorkersOf:
    """The endpoints of workers."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._ledger = backend, Ledger.of_instance(backend.instance)

    def endpoints(self) -> list[Endpoint]:
        """Return them."""
        told = {
            "drain": "Have a worker take no new runs, until those that are there have ended.",
            "cordon": "Have a worker take no new runs.",
            "uncordon": "Have a worker take new runs again.",
        }
        return [
            Endpoint("GET", "/workers", self.list, "List workers, and who holds what of them.", shapes.Workers),
            Endpoint("GET", "/workers/{id}", self.show, "Tell of a worker.", shapes.Worker, problems=(404,)),
            *(
                Endpoint("POST", f"/workers/{{id}}/{verb}", partial(self.change, verb), told[verb], shapes.Worker,
                         scope="admin", problems=(404,))
                for verb in VERBS
            ),
        ]  # fmt: skip

    async def list(self, _request: Request, _given: Given) -> Response:
        """Tell of all workers."""
        return JSONResponse({"workers": await self._backend.thread(self._rows)})

    async def show(self, request: Request, _given: Given) -> Response:
        """Tell of one."""
        return JSONResponse(await self._backend.thread(partial(self._row, request.path_params["id"])))

    async def change(self, verb: str, request: Request, _given: Given) -> Response:
        """Let a worker take new runs, or not."""
        return JSONResponse(await self._backend.thread(partial(self._changed, verb, request.path_params["id"])))

    def _rows(self) -> list[shapes.Worker]:
        return worker_rows(*self._ledger.snapshot())

    def _row(self, name: str) -> shapes.Worker:
        rows = self._rows()
        for row in rows:
            if row["name"] == name:
                return row
        names = ", ".join(row["name"] for row in rows)
        way_out = f"there are {names}" if names else "none is known yet: the daemon enters them"
        raise Problem(404, f"there is no worker {name[:80]!r}", way_out)

    def _changed(self, verb: str, name: str) -> shapes.Worker:
        if self._ledger.set_state(name, VERBS[verb]):
            knock(Path(self._backend.instance.root_directory))
        return self._row(name)
