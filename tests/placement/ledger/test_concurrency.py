"""Many claims at once, from several processes."""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter

from mloc_dagster.placement.ledger import Lease, Ledger
from mloc_dagster.placement.workers.need import WHOLE, GpuNeed, Need
from tests.placement.ledger.conftest import WORKERS

PROCESSES, CLAIMS = 8, 125


def oversubscribed(leases: list[Lease]) -> str:
    """What is given out more than once in one state of the ledger; nothing when all is well."""
    for worker in WORKERS:
        held = [lease for lease in leases if lease.worker == worker.name]
        shares: Counter[int] = Counter()
        for lease in held:
            shares.update(lease.devices)
        if any(share > WHOLE for share in shares.values()) or sum(lease.need.cpu for lease in held) > worker.cpu:
            return f"{worker.name}: {held}"
        if sum(lease.need.memory for lease in held) > worker.memory:
            return f"{worker.name}: {held}"
    return ""


def _compete(url: str, number: int, answers) -> None:
    """Claim again and again, look at the ledger while holding, give back in any order; tell what went wrong."""
    ledger, random_, mine, got = Ledger(url), random.Random(number), [], 0
    for turn in range(CLAIMS):
        count = random_.choice([0, 1, 1, 2, 4])
        share = random_.choice([250, 500, WHOLE])
        need = Need(random_.choice([500, 1000, 3000]), random_.choice([0, 4 << 30]), (GpuNeed("any", count, 0, share),))
        worker = "gpu-a" if count else random_.choice(["gpu-a", "cpu-b"])
        need = need if count else need.on_cpu
        lease = ledger.claim(f"{number}-{turn}", "ann", need, 60, worker=worker)
        if lease is not None:
            got += 1
            mine.append(lease.token)
            state = ledger.snapshot()[1]
            if wrong := oversubscribed(state):
                return answers.put((got, f"given out twice: {wrong}"))
            if lease not in state:
                return answers.put((got, f"{lease} is not in the ledger"))
        while len(mine) > 1 or (mine and random_.random() < 0.6):
            if not ledger.release(mine.pop(random_.randrange(len(mine)))):
                return answers.put((got, "a lease was taken away"))
    for token in mine:
        ledger.release(token)
    return answers.put((got, ""))


def test_a_thousand_claims_from_eight_processes(url: str) -> None:
    Ledger(url).register("here", WORKERS, load=0.0)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_compete, args=(url, number, answers)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=200) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert [wrong for _, wrong in found if wrong] == []
    assert sum(got for got, _ in found) >= PROCESSES * CLAIMS // 4, "too few were given for the test to mean anything"
    assert Ledger(url).snapshot()[1] == []
