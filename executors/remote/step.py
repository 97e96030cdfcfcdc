"""One attempt at a stage on this machine: inputs in, work, outputs out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from executors.attempt import INTERNAL_FAULT, USER_FAULT
from executors.cgroup import Cgroup
from executors.distributed.nodes import this_node
from executors.group import end_group, signal_group
from executors.heartbeat import BEATS, Pulse
from executors.job import Job
from executors.parent import PARENT
from executors.progress import ProgressTail
from executors.remote import messages
from executors.remote.cache import NodeCache, pull_file
from executors.remote.document import JOB, STATE, Input, RemoteJob, RemoteResult, State, Versioned, result_name
from executors.remote.fence import Fence
from executors.remote.kernel import oom_kills
from executors.remote.store import Store, StoreError, Unusable, files_below
from executors.stopping import STOPPED, on_sigterm
from mloc_dagster import __version__
from mloc_dagster.files.atomic import HALF, write_text
from mloc_dagster.files.paths import moved

_POLL_SECONDS = 0.05
_BEAT_SECONDS = 2.0
_PUSH_TRIES = 5
_NOT_KEPT = (".cache/datasets/", ".cache/modules/", ".cache/downloads/", "logs/stdout.log", f"logs/{BEATS}", "job.json")
"""Of a work folder; the log and the progress reach the control plane by themselves."""


def read_job(store: Store, key: str) -> RemoteJob | None:
    """Return the document of an attempt; None: it is of another version, and that is the attempt's result now.

    Raises StoreError.
    """
    told = store.read(f"{key}/{JOB}", Versioned)
    if told is None:
        raise StoreError(f"the artifact store {store.url} holds no {key}/{JOB}\nIs it the control plane's store?")
    if told.version == __version__:
        return store.read(f"{key}/{JOB}", RemoteJob)
    node = this_node()
    fault = _fault(
        USER_FAULT, "user", f"the image has MLOC {__version__}, the control plane {told.version}",
        "Build the image again from the version that runs the control plane.",
    )  # fmt: skip
    store.write(f"{key}/{result_name(node.rank if node else 0)}", fault)
    return None


class Step:
    """One attempt. `root` is a folder of this machine for the work, `cache` one that may be kept for others.

    `contained`: what this process sees of the machine is what the stage was given. Elsewhere it begins in an empty
    folder, uses the devices that were granted by their own numbers, and has `memory` bytes at most (0: no bound).
    """

    def __init__(
        self, store: Store, key: str, job: RemoteJob, root: Path, cache: Path, *, contained: bool = True,
        memory: int = 0,
    ) -> None:  # fmt: skip
        self._store, self._key, self._remote, self._root = store, key, job, root
        self._contained, self._memory = contained, memory
        self._inputs = NodeCache(cache, store)
        self._out = root / "work" / job.work
        self._stop, self._fenced = threading.Event(), threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        node = this_node()
        self._nodes, self._rank = (node.count, node.rank) if node else (1, 0)

    def run(self) -> RemoteResult:
        """Carry the attempt out and store its result; what it says goes to standard output."""
        on_sigterm(self.stop)
        over = threading.Event()
        threading.Thread(target=self._beat, args=(over,), daemon=True, name="beat").start()
        try:
            result = self._attempt()
        except StoreError as error:
            result = _fault(INTERNAL_FAULT, "internal", str(error))
        except OSError as error:  # such as a full disk
            what = f"the work could not be set up or put away on its machine: {error}"
            way_out = f"make room in {self._root}, and let the user of the image write there and in the cache"
            result = _fault(INTERNAL_FAULT, "internal", what, way_out)
        finally:
            over.set()
        self._store.write(f"{self._key}/{result_name(self._rank)}", result)
        messages.say(messages.END, result.code)
        return result

    def clear(self) -> None:
        """Remove the work folder; what is of use of it was stored."""
        self._inputs.close()
        for folder in (self._out, self._root / "upstream" / self._remote.work):
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        """Ask the stage to store its state and end."""
        self._stop.set()
        if self._child is not None:
            signal_group(self._child.pid, signal.SIGTERM)

    def _attempt(self) -> RemoteResult:
        if not self._contained:
            shutil.rmtree(self._out, ignore_errors=True)  # of an attempt that was given up
        self._out.mkdir(parents=True, exist_ok=True)
        job = self._job_here()
        if not job.fresh:
            self._restore()
        if self._stop.is_set():
            return RemoteResult(code=STOPPED, stopped=True)
        job_file = self._out / "job.json"
        write_text(job_file, job.model_dump_json(indent=1))
        return self._work(job_file)

    def _job_here(self) -> Job:
        """The job with the paths of this machine; inputs are pulled first."""
        places = {given.at: self._pulled(given) for given in self._remote.inputs}
        places[str(self._remote.job.out)] = str(self._out)
        values = self._moved(self._remote.job.model_dump(mode="json", exclude={"upstream"}), places)
        job = Job.model_validate(values)
        cache, results = self._root / "cache", self._root / "results"
        count = len(job.devices) // self._nodes
        counted = tuple(map(str, range(count)))  # a container sees its own devices only, numbered from 0
        return job.model_copy(
            update={
                "out": self._out,
                "cache": cache if job.cache else None,
                "results": results if job.results else None,
                "devices": counted if self._contained else job.devices,
                "upstream": {name: self._envelope(name, at, places) for name, at in self._remote.job.upstream.items()},
            }
        )

    def _pulled(self, given: Input) -> str:
        folder = self._inputs.folder(given.tree)
        return str(folder / given.file if given.file else folder)

    def _envelope(self, stage: str, at: Path, places: dict[str, str]) -> Path:
        """The result of an earlier stage, with the paths of this machine in it."""
        value = json.loads(Path(places[str(at)]).read_text("utf-8"))
        path = self._root / "upstream" / self._remote.work / f"{stage}.json"
        write_text(path, json.dumps(self._moved(value, places)))
        return path

    def _moved(self, value, places: dict[str, str]):
        for at in sorted(places, key=len, reverse=True):
            value = moved(value, at, places[at])
        return value

    def _restore(self) -> None:
        """Lay out what an earlier attempt had stored, wherever it ran; begins anew when a part of it is lost."""
        try:
            state = self._store.read(f"{self._state_key}/{STATE}", State)
            if state is None:
                return
            tree = self._store.tree(state.out)
            messages.say(messages.NOTE, f"goes on from {len(tree.files)} files of an earlier attempt")
            for entry in tree.files:
                pull_file(self._store, entry, self._out)
        except Unusable as error:
            messages.say(messages.NOTE, f"begins anew: what an earlier attempt had stored cannot be read: {error}")
            shutil.rmtree(self._out)
            self._out.mkdir()

    def _work(self, job_file: Path) -> RemoteResult:
        killed = oom_kills()
        group = Cgroup.make(memory_bytes=self._memory) if self._memory else None
        command = [sys.executable, "-u", "-m", "executors.host", str(job_file)]
        child = self._child = subprocess.Popen(
            group.entering(command) if group else command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, PARENT: str(os.getpid()), "MLOC_TERMINATE_GRACE_SECONDS": f"{self._remote.grace:g}"},
        )
        lines = threading.Thread(target=_relay, args=(child,), daemon=True, name="log")
        lines.start()
        timed_out = self._watch(child)
        end_group(child, 0)
        lines.join(10)
        code = STOPPED if self._stop.is_set() and child.returncode else child.returncode
        out_of_memory = (group.kills() if group else oom_kills() - killed) > 0
        if group:
            group.end()
        if code == 0:
            self._add_libraries()
            return RemoteResult(code=0, out=None if self._rank else self._push(), at=str(self._out))
        self._keep()
        error = _read_error(self._out / "error.json")
        stopped = self._stop.is_set() and not timed_out
        return RemoteResult(code=code, error=error, stopped=stopped, timed_out=timed_out, out_of_memory=out_of_memory)

    def _watch(self, child: subprocess.Popen[bytes]) -> bool:
        """Wait for the end of the stage; returns whether it was ended for its time limit."""
        progress = ProgressTail(self._out / "logs" / "progress.jsonl")
        begun = synced = time.monotonic()
        kill_at: float | None = None
        timed_out = False
        fence = Fence(self._store, self._key, self._remote.sync)
        sync: threading.Thread | None = None
        while child.poll() is None:
            progress.read(lambda line: messages.say(messages.PROGRESS, line))
            now = time.monotonic()
            if self._remote.timeout and not timed_out and now - begun > self._remote.timeout:
                timed_out = True
                self.stop()
            if not self._stop.is_set() and fence.passed():
                messages.say(messages.NOTE, "another attempt at this work has begun elsewhere; this one ends")
                self._fenced.set()
                self.stop()
            if self._stop.is_set() and kill_at is None:
                kill_at = now + self._remote.grace
            if kill_at is not None and now > kill_at:
                signal_group(child.pid, signal.SIGKILL)
            if now - synced > self._remote.sync and (sync is None or not sync.is_alive()):
                sync = threading.Thread(target=self._keep, daemon=True, name="sync")
                sync.start()
                synced = now
            time.sleep(_POLL_SECONDS)
        progress.read(lambda line: messages.say(messages.PROGRESS, line))
        if sync is not None:
            sync.join()
        return timed_out

    def _keep(self) -> None:
        """Store unfinished work for the next attempt; a failure is told and costs nothing but that.

        Of several nodes the first one does that: it has the checkpoints. The state of work that another attempt holds
        is that one's.
        """
        if self._rank or self._fenced.is_set():
            return
        try:
            self._store.write(f"{self._state_key}/{STATE}", State(out=self._push()))
        except (StoreError, OSError) as error:
            messages.say(messages.NOTE, f"unfinished work could not be stored: {error}")

    def _push(self) -> str:
        """Store the work folder; files that vanish meanwhile, such as old checkpoints, have it looked at again."""
        for attempt in range(_PUSH_TRIES):
            try:
                return self._store.push(dict(_kept(self._out)))
            except FileNotFoundError:
                if attempt == _PUSH_TRIES - 1:
                    raise
        raise AssertionError

    def _add_libraries(self) -> None:
        """Tell in the result with which versions of its libraries it was made."""
        path, here = self._out / "result.json", {name: _version(name) for name in self._remote.libraries}
        result = json.loads(path.read_text("utf-8"))
        result["metadata"] = {**(result.get("metadata") or {}), "libraries": here}
        write_text(path, json.dumps(result, indent=1))
        other = [name for name, there in self._remote.libraries.items() if there not in (None, here[name])]
        if other and not self._rank:
            told = ", ".join(f"{name} {here[name]} (here {self._remote.libraries[name]})" for name in other)
            messages.say(messages.NOTE, f"the image has other libraries than the control plane: {told}")

    @property
    def _state_key(self) -> str:
        return f"jobs/{self._remote.work}"

    def _beat(self, over: threading.Event) -> None:
        """Say that the stage lives, as long as it does; before and after it, that this process moves files."""
        pulse: Pulse | None = None
        while not over.wait(_BEAT_SECONDS):
            child = self._child
            if child is None or child.poll() is not None:
                messages.say(messages.BEAT)
                continue
            pulse = pulse or Pulse(child.pid, self._out / "logs" / BEATS)
            if pulse.felt():
                messages.say(messages.BEAT)


def _kept(out: Path) -> Iterator[tuple[str, Path]]:
    for name, path in files_below(out).items():
        if not name.startswith(_NOT_KEPT) and not name.endswith(HALF) and name != "logs/progress.jsonl":
            yield name, path


def _relay(child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        messages.say_line(line if line.endswith(b"\n") else line + b"\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read_error(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _fault(code: int, kind: str, message: str, hint: str = "") -> RemoteResult:
    return RemoteResult(code=code, error={"kind": kind, "message": message, "hint": hint})
