"""Claim, hold, release: what runs have of workers."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.ledger import database as tables
from mloc_dagster.placement.ledger.database import Database, url_of
from mloc_dagster.placement.workers.need import Need
from mloc_dagster.placement.workers.room import Room, State, Worker, preference
from mloc_dagster.spec.base import Json

if TYPE_CHECKING:
    from dagster import DagsterInstance


@dataclass(frozen=True)
class Lease:
    """What one run, or one stage of it, holds. `devices` are thousandths by index; times in seconds since the epoch."""

    token: int
    run_id: str
    owner: str
    worker: str
    need: Need
    devices: Mapping[int, int]
    taken_at: float
    expires_at: float
    expected: float | None = None

    @property
    def run(self) -> str:
        """The id of the run; that of a stage's lease is followed by the stage."""
        return self.run_id.partition(_OF_STAGE)[0]


@dataclass(frozen=True)
class Wait:
    """A stage that waits for a worker of its own: the room that it needs on `worker` is kept for it."""

    run_id: str
    need: Need
    worker: str
    since: float
    first: str
    """The worker where room was kept first."""

    def leaves(self, worker: Worker, leases: Sequence[Lease]) -> Room:
        """What others may take on its worker: all but what it needs and what was taken there since it waits."""
        room = Room.whole(worker)
        for lease in leases:
            if lease.worker == worker.name and lease.taken_at > self.since:
                room.take(lease.need, lease.devices)
        devices = room.fit(self.need)
        if devices is None:
            cpu, memory = max(0, room.cpu - self.need.cpu), max(0, room.memory - self.need.memory)
            return Room(worker, cpu, memory, [0] * len(worker.devices))
        room.take(self.need, devices)
        return room


@dataclass(frozen=True)
class Seen:
    """A worker as it was last seen: on which host, when, and the host's load (runnable processes per core)."""

    worker: Worker
    host: str
    load: float
    seen_at: float


_OF_STAGE = "/"
_WAIT_SECONDS = 10.0
"""After so long without another try nothing is kept any more."""
_PLACE_SECONDS = 60.0
"""So long after that a stage that tries again still waits since it began to."""
_MOVE_SECONDS = 300.0
"""After so long room is kept on another worker: what runs on the first one may never end."""
_of_instances: WeakKeyDictionary[DagsterInstance, Ledger] = WeakKeyDictionary()


class Ledger:
    """The ledger in one database; safe to use from many processes."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    @classmethod
    def of_instance(cls, instance: DagsterInstance) -> Ledger:
        """Return the ledger of a Dagster instance, the same one each time."""
        if instance not in _of_instances:
            _of_instances[instance] = cls(url_of(instance))
        return _of_instances[instance]

    def register(self, host: str, workers: Sequence[Worker], load: float) -> None:
        """Say which workers a host has now. Their states stay; those that are gone take no new runs, and are removed
        when nothing runs there any more. One that is said to be gone, since it is not connected, stays."""
        with self._database.writing() as connection:
            now = self._database.now(connection)
            known = {row.name: row for row in connection.execute(sa.select(tables.workers))}
            busy = set(connection.scalars(sa.select(tables.leases.c.worker).distinct()))
            for worker in workers:
                _forget(connection, worker.name)
                before = known[worker.name].state if worker.name in known else "gone"
                state = worker.state if before == "gone" or (worker.state, before) == ("gone", "ready") else before
                values = {"cpu": worker.cpu, "memory": worker.memory, "load": load, "seen_at": now, "host": host}
                connection.execute(sa.insert(tables.workers).values(name=worker.name, state=state, **values))
                for device in worker.devices:
                    values = {"device": device.index, "name": device.name, "memory": device.memory}
                    connection.execute(sa.insert(tables.devices).values(worker=worker.name, **values))
            gone = {name for name, row in known.items() if row.host == host} - {worker.name for worker in workers}
            for name in gone - busy:
                _forget(connection, name)
            connection.execute(
                sa.update(tables.workers).where(tables.workers.c.name.in_(gone & busy)).values(state="gone")
            )

    def set_state(self, name: str, state: State) -> bool:
        """Let a worker take new runs or not; returns whether there is such a worker."""
        with self._database.writing() as connection:
            change = sa.update(tables.workers).where(tables.workers.c.name == name).values(state=state)
            return connection.execute(change).rowcount == 1

    def snapshot(self) -> tuple[list[Seen], list[Lease]]:
        """Return all workers and leases as they were at one moment."""
        with self._database.reading() as connection:
            return _workers(connection), _leases(connection)

    def claim(
        self, run_id: str, owner: str, need: Need, seconds: float, *, worker: str, expected: float | None = None
    ) -> Lease | None:
        """Give a run all that it needs of a worker, for `seconds` unless it is renewed.

        Returns None when that is not free, the worker takes no runs, or the run holds a lease already.
        """
        with self._database.writing() as connection:
            seen = {one.worker.name: one.worker for one in _workers(connection)}.get(worker)
            held = _leases(connection)
            if seen is None or seen.state != "ready" or any(lease.run_id == run_id for lease in held):
                return None
            room = Room.whole(seen)
            for lease in held:
                if lease.worker == worker:
                    room.take(lease.need, lease.devices)
            devices = room.fit(need)
            if devices is None:
                return None
            now = self._database.now(connection)
            lease = Lease(0, run_id, owner, worker, need, devices, now, now + seconds, expected)
            return _insert(connection, lease)

    def claim_stage(
        self, run_id: str, stage: str, owner: str, need: Need, seconds: float, *, among: Collection[str],
        avoid: str = "",
    ) -> Lease | None:  # fmt: skip
        """Give one stage of a run all that it needs of the worker `among` these that suits it best; `avoid` comes last.

        What the run itself holds is given back: it was to begin with. Returns None when nothing is free but what is
        kept for a stage that waits longer; from then on room is kept for this one, too, as long as it asks again.
        """
        key = f"{run_id}{_OF_STAGE}{stage}"
        with self._database.writing() as connection:
            _empty(connection, run_id)
            connection.execute(sa.delete(tables.leases).where(tables.leases.c.run_id == key))
            now, leases = self._database.now(connection), _leases(connection)
            waits = _waits(connection, now)
            mine = next((wait for wait in _waits(connection, now - _PLACE_SECONDS) if wait.run_id == key), None)
            ready = [room for room in _rooms(connection, leases) if room.worker.state == "ready"]
            rooms = [room for room in ready if room.worker.name in among]
            first = [wait for wait in waits if wait.run_id != key and (mine is None or wait.since < mine.since)]
            open_ = [_beside(room, first, leases) for room in rooms]
            fitting = [room for room in open_ if room.fit(need) is not None]
            if not fitting:
                _wait(connection, key, need, mine, rooms, now)
                return None
            connection.execute(sa.delete(tables.waits).where(tables.waits.c.run_id == key))
            room = min(fitting, key=lambda room: preference(room, need, avoid))
            devices = room.fit(need) or {}
            return _insert(connection, Lease(0, key, owner, room.worker.name, need, devices, now, now + seconds))

    def waits(self) -> list[Wait]:
        """Return the stages that wait for workers of their own, those that wait longest first."""
        with self._database.reading() as connection:
            return _waits(connection, self._database.now(connection))

    def give_up(self, run_id: str, stage: str) -> None:
        """Keep no room any more for a stage that waits."""
        with self._database.writing() as connection:
            connection.execute(sa.delete(tables.waits).where(tables.waits.c.run_id == f"{run_id}{_OF_STAGE}{stage}"))

    def note_stage(
        self,
        run_id: str,
        stage: str,
        owner: str,
        need: Need,
        seconds: float,
        *,
        worker: str,
        devices: Mapping[int, int],
        split: bool = False,
    ) -> Lease:
        """Write down what one stage of a run has of a worker already, whether that was free or not.

        `split`: each stage of the run has a worker of its own; what the run holds is given back.
        """
        key = f"{run_id}{_OF_STAGE}{stage}"
        with self._database.writing() as connection:
            if split:
                _empty(connection, run_id)
            connection.execute(sa.delete(tables.leases).where(tables.leases.c.run_id == key))
            connection.execute(sa.delete(tables.waits).where(tables.waits.c.run_id == key))
            now = self._database.now(connection)
            return _insert(connection, Lease(0, key, owner, worker, need, devices, now, now + seconds))

    def renew(self, token: int, seconds: float) -> bool:
        """Say that a lease is still used; False: it is gone, and its holder must end."""
        with self._database.writing() as connection:
            until = self._database.now(connection) + seconds
            found = sa.update(tables.leases).where(tables.leases.c.token == token).values(expires_at=until)
            return connection.execute(found).rowcount == 1

    def release(self, token: int) -> bool:
        """Give back what a lease holds; returns whether it was there."""
        with self._database.writing() as connection:
            return connection.execute(sa.delete(tables.leases).where(tables.leases.c.token == token)).rowcount == 1

    def expired(self) -> list[Lease]:
        """Return leases that were not renewed in time. They hold what they have until they are released."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            return [lease for lease in _leases(connection) if lease.expires_at < now]

    def save(self, key: str, value: Json) -> None:
        """Keep a JSON value under a name."""
        with self._database.writing() as connection:
            connection.execute(sa.delete(tables.state).where(tables.state.c.key == key))
            connection.execute(sa.insert(tables.state).values(key=key, value=json.dumps(value)))

    def saved(self, key: str) -> Json:
        """Return a value that was kept, or None."""
        with self._database.reading() as connection:
            text = connection.scalar(sa.select(tables.state.c.value).where(tables.state.c.key == key))
        return None if text is None else json.loads(text)


def _insert(connection: Connection, lease: Lease) -> Lease:
    values = {**vars(lease), "need": json.dumps(lease.need.as_dict()), "devices": json.dumps(lease.devices)}
    del values["token"]
    key = connection.execute(sa.insert(tables.leases).values(**values)).inserted_primary_key
    assert key is not None
    return Lease(**{**vars(lease), "token": key[0]})


def _empty(connection: Connection, run_id: str) -> None:
    """Have a run itself hold nothing, and its lease stay."""
    nothing = {"need": json.dumps(Need(cpu=0).as_dict()), "devices": "{}"}
    connection.execute(sa.update(tables.leases).where(tables.leases.c.run_id == run_id).values(**nothing))


def _rooms(connection: Connection, leases: Sequence[Lease]) -> list[Room]:
    rooms = {one.worker.name: Room.whole(one.worker) for one in _workers(connection)}
    for lease in leases:
        if lease.worker in rooms:
            rooms[lease.worker].take(lease.need, lease.devices)
    return list(rooms.values())


def _beside(room: Room, waits: Sequence[Wait], leases: Sequence[Lease]) -> Room:
    """What is free on a worker beside what is kept there for others."""
    for wait in waits:
        if wait.worker != room.worker.name:
            continue
        devices = room.fit(wait.need)
        if devices is None:
            room = room.within(wait.leaves(room.worker, leases))
        else:  # it takes that itself in a moment
            room = room.copy()
            room.take(wait.need, devices)
    return room


def _waits(connection: Connection, now: float) -> list[Wait]:
    table = tables.waits
    rows = connection.execute(sa.select(table).where(table.c.until > now).order_by(table.c.since))
    return [Wait(row.run_id, Need.from_dict(json.loads(row.need)), row.worker, row.since, row.first) for row in rows]


def _wait(
    connection: Connection, key: str, need: Need, mine: Wait | None, rooms: Sequence[Room], now: float
) -> None:  # fmt: skip
    """Note that a stage waits, and where room is kept for it: first where most of it is free, then on the others."""
    gone = (tables.waits.c.run_id == key) | (tables.waits.c.until < now - _PLACE_SECONDS)
    connection.execute(sa.delete(tables.waits).where(gone))
    able = [room for room in rooms if Room.whole(room.worker).fit(need) is not None]
    if not able:
        return
    since = mine.since if mine is not None else now
    able.sort(key=lambda room: room.worker.name)
    first = next((at for at, room in enumerate(able) if mine and room.worker.name == mine.first), None)
    if first is None:
        first = max(range(len(able)), key=lambda at: _free_for(able[at], need))
    chosen = able[(first + int((now - since) / _MOVE_SECONDS)) % len(able)].worker.name
    values = {"need": json.dumps(need.as_dict()), "worker": chosen, "first": able[first].worker.name}
    connection.execute(sa.insert(tables.waits).values(run_id=key, since=since, until=now + _WAIT_SECONDS, **values))


def _free_for(room: Room, need: Need) -> tuple[bool, int, int]:
    """How much of what is asked for is free; CPU work keeps off workers with GPUs."""
    shares = sum(room.shares[at] for gpu in need.gpus for at in room.worker.suiting(gpu))
    return (bool(need.gpus) or not room.worker.devices, shares, room.cpu)


def _forget(connection: Connection, worker: str) -> None:
    connection.execute(sa.delete(tables.devices).where(tables.devices.c.worker == worker))
    connection.execute(sa.delete(tables.workers).where(tables.workers.c.name == worker))


def _workers(connection: Connection) -> list[Seen]:
    devices: dict[str, list[Device]] = {}
    for row in connection.execute(sa.select(tables.devices).order_by(tables.devices.c.device)):
        devices.setdefault(row.worker, []).append(Device(row.device, row.name, row.memory))
    rows = connection.execute(sa.select(tables.workers).order_by(tables.workers.c.name))
    return [_seen(row, tuple(devices.get(row.name, ()))) for row in rows]


def _seen(row: Any, devices: tuple[Device, ...]) -> Seen:
    return Seen(Worker(row.name, row.cpu, row.memory, devices, row.state), row.host, row.load, row.seen_at)


def _leases(connection: Connection) -> list[Lease]:
    return [
        Lease(
            token=row.token,
            run_id=row.run_id,
            owner=row.owner,
            worker=row.worker,
            need=Need.from_dict(json.loads(row.need)),
            devices={int(index): share for index, share in json.loads(row.devices).items()},
            taken_at=row.taken_at,
            expires_at=row.expires_at,
            expected=row.expected,
        )
        for row in connection.execute(sa.select(tables.leases).order_by(tables.leases.c.token))
    ]
