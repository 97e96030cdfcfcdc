"""A Kubernetes API server on the loopback interface that runs pods as processes: Jobs, Pods, Secrets, logs, watches.

Each pod's command runs in name spaces of its own (mounts, processes), so its volumes are where it expects them and
nothing of it outlives it; its image counts only by name. A scheduler looks at labels, taints, affinity and resources.
What breaks in real clusters breaks here when it is told to.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml

TOKEN = "loopback-token"
IMAGE = "registry.example/mloc:1"
ROOT = Path(__file__).absolute().parents[1]
_PATH = re.compile(r"/(?:api|apis/batch)/v1/namespaces/([^/]+)/(jobs|pods|secrets|services)(?:/([^/]+))?(/log)?")
_KINDS = {"jobs": "Job", "pods": "Pod", "secrets": "Secret", "services": "Service"}
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

_COUNTED_SECONDS = 0.5
"""So long the finalizer of Jobs keeps a pod that has ended: its controller counts it first."""


@dataclass
class Node:
    """One node: its labels, taints as (key, value), and what pods may ask of it."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[tuple[str, str]] = field(default_factory=list)
    allocatable: dict[str, str] = field(default_factory=lambda: {"cpu": "64", "memory": "512Gi"})
    lost: bool = False


@dataclass
class Fault:
    """What the next `times` requests get; `late`: the server does what it is asked for, and its answer is lost."""

    method: str
    path: str
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    late: bool = False


class Process:
    """The process of a pod, and what it has written, each line with its time."""

    def __init__(self, pod: dict[str, Any], environment: dict[str, str], folder: Path, hosts: str) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self.reason = ""
        self.killed = False
        self.counted_at = 0.0
        self.kill_at: float | None = None
        mounts = "".join(
            f"mkdir -p {inner} && mount --bind {outer} {inner} && " for outer, inner in _mounts(pod, folder)
        )
        (folder / "hosts").write_text(hosts)
        mounts += f"mount --bind {folder / 'hosts'} /etc/hosts && "
        command = ["unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc", "sh", "-c", f'{mounts}exec "$@"', "sh"]
        self.child = subprocess.Popen(
            [*command, *pod["spec"]["containers"][0]["command"]],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=folder,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def signal(self, number: int) -> None:
        """Signal the pod's first process, as a kubelet does."""
        self.killed = self.killed or number == signal.SIGKILL
        with suppress(OSError):
            for pid in Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split():
                os.kill(int(pid), number)

    def code(self) -> int | None:
        """The exit code once it has ended and all that it wrote is here."""
        code = self.child.poll()
        if code is None or self.reader.is_alive():
            return None
        return 137 if self.killed else code  # `unshare` says only that its child was killed

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append((_nano(), line))


class Cluster:
    """The state of a cluster, its controllers, and its API server."""

    def __init__(self, folder: Path, nodes: list[Node]) -> None:
        self.folder, self.nodes = folder, nodes
        self.images = {IMAGE}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.slow_watch = False
        self.created: list[str] = []
        """Uids of all Jobs that were ever made."""
        self.started: list[str] = []
        """Names of all pods whose process was ever started."""
        self._objects: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in _KINDS}
        self._processes: dict[str, Process] = {}
        self._version, self._forgotten, self._epoch = 100, 0, 0
        self._events: list[tuple[int, str, str, dict[str, Any]]] = []
        self.lock = threading.RLock()
        self._over = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.up()
        self._control = threading.Thread(target=self._loop, daemon=True)
        self._control.start()

    # what tests do to it

    def up(self) -> None:
        """Listen, at the same port as before."""
        self.answers = True
        handler = type("Handler", (_Handler,), {"cluster": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections and break off those that are open; pods go on."""
        assert self._server is not None
        self.answers = False
        self.cut()
        self._server.shutdown()
        self._server.server_close()

    def cut(self) -> None:
        """Break off all logs and watches that are followed."""
        self._epoch += 1

    def forget(self) -> None:
        """Watches from older states are answered with 410."""
        self._forgotten = self._version

    def end(self) -> None:
        """End all pods and the server."""
        self._over.set()
        self._control.join()
        self.down()
        for process in self._processes.values():
            process.child.kill()
            process.child.wait()

    def jobs(self) -> list[dict[str, Any]]:
        """All Jobs."""
        with self.lock:
            return deepcopy(list(self._objects["jobs"].values()))

    def pods(self) -> list[dict[str, Any]]:
        """All pods."""
        with self.lock:
            return deepcopy(list(self._objects["pods"].values()))

    def secrets(self) -> list[dict[str, Any]]:
        """All Secrets."""
        with self.lock:
            return deepcopy(list(self._objects["secrets"].values()))

    def services(self) -> list[dict[str, Any]]:
        """All Services."""
        with self.lock:
            return deepcopy(list(self._objects["services"].values()))

    def resume(self, job: str) -> None:
        """Let a suspended Job go, as Kueue does."""
        with self.lock:
            self._objects["jobs"][job]["spec"]["suspend"] = False
            self._changed("jobs", job)

    def expire(self, job: str) -> None:
        """Let a Job's deadline pass."""
        with self.lock:
            self._objects["jobs"][job]["spec"]["activeDeadlineSeconds"] = 0.001

    def allow(self, image: str) -> None:
        """Put an image into the registry."""
        with self.lock:
            self.images.add(image)

    def evict(self, pod: str, reason: str = "EvictionByEvictionAPI", message: str = "Eviction API: evicting") -> None:
        """Take a pod away, with its grace."""
        with self.lock:
            _set_condition(self._objects["pods"][pod], "DisruptionTarget", "True", reason, message)
            self._delete("pods", pod, None)

    def starve(self, pod: str) -> None:
        """Kill a pod's process for want of memory."""
        self._processes[pod].reason = "OOMKilled"
        self._processes[pod].signal(signal.SIGKILL)

    def lose(self, pod: str) -> None:
        """Cut a pod's node off: nothing is heard of it, and its work stops."""
        with self.lock:
            name = self._objects["pods"][pod]["spec"]["nodeName"]
            next(node for node in self.nodes if node.name == name).lost = True
            self._processes[pod].child.kill()

    def take_from_lost_node(self, pod: str) -> None:
        """What the taint manager does after five minutes, and the collector of pods then."""
        with self.lock:
            message = "Taint manager: deleting due to NoExecute taint"
            _set_condition(self._objects["pods"][pod], "DisruptionTarget", "True", "DeletionByTaintManager", message)
            self._objects["pods"][pod]["status"] |= {"phase": "Failed"}
            self._changed("pods", pod)

    def kubeconfig(self, path: Path, contexts: tuple[str, ...] = ("here",)) -> Path:
        """Write a kubeconfig whose contexts all lead here."""
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": contexts[0],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": name, "context": {"cluster": "c", "user": "u"}} for name in contexts],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return path

    # objects

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return self._objects[kind].get(name)

    def list(self, kind: str, selector: str) -> list[dict[str, Any]]:
        wanted = dict(part.split("=") for part in selector.split(",") if part)
        return [
            one for one in self._objects[kind].values() if wanted.items() <= one["metadata"].get("labels", {}).items()
        ]

    @property
    def version(self) -> str:
        return str(self._version)

    @property
    def epoch(self) -> int:
        return self._epoch

    def expired(self, version: int) -> bool:
        return version < self._forgotten

    def since(self, version: int, kind: str) -> list[tuple[int, str, dict[str, Any]]]:
        with self.lock:
            return [(number, what, body) for number, of, what, body in self._events if of == kind and number > version]

    def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make an object; raises KeyError when there is one of its name."""
        with self.lock:
            metadata = body["metadata"]
            if metadata["name"] in self._objects[kind]:
                raise KeyError(metadata["name"])
            body = deepcopy(body)
            body["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now()}
            body.setdefault("status", {})
            self._objects[kind][metadata["name"]] = body
            if kind == "jobs":
                self.created.append(body["metadata"]["uid"])
            self._changed(kind, metadata["name"], "ADDED")
            return deepcopy(body)

    def delete(self, kind: str, name: str, options: dict[str, Any]) -> None:
        """Delete as documented: pods after their grace, Jobs with or without waiting for their pods."""
        with self.lock:
            if kind == "pods":
                return self._delete(kind, name, options.get("gracePeriodSeconds"))
            if kind == "jobs" and options.get("propagationPolicy") == "Foreground":
                self._objects[kind][name]["metadata"]["deletionTimestamp"] = _now()
                self._changed(kind, name)
                return None
            return self._gone(kind, name)

    def process(self, pod: str) -> Process | None:
        return self._processes.get(pod)

    def node_is_lost(self, pod: dict[str, Any]) -> bool:
        return any(node.lost for node in self.nodes if node.name == pod["spec"].get("nodeName"))

    def _delete(self, kind: str, name: str, grace: int | None) -> None:
        pod = self._objects[kind][name]
        grace = pod["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
        pod["metadata"] |= {"deletionTimestamp": _now(), "deletionGracePeriodSeconds": grace}
        self._changed(kind, name)
        process = self._processes.get(name)
        if self.node_is_lost(pod):
            return self._gone(kind, name) if grace == 0 else None
        if process is None or process.code() is not None:
            self._gone(kind, name)
        else:
            process.signal(signal.SIGTERM if grace else signal.SIGKILL)
            process.kill_at = min(process.kill_at or float("inf"), time.monotonic() + float(grace or 0))
        return None

    def _gone(self, kind: str, name: str) -> None:
        body = self._objects[kind].pop(name, None)
        if body is not None:
            self._tell(kind, "DELETED", body)

    def _changed(self, kind: str, name: str, what: str = "MODIFIED") -> None:
        self._tell(kind, what, self._objects[kind][name])

    def _tell(self, kind: str, what: str, body: dict[str, Any]) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, kind, what, deepcopy(body)))

    # controllers

    def _loop(self) -> None:
        while not self._over.wait(0.03):
            with self.lock:
                for name in list(self._objects["jobs"]):
                    self._job(name)
                for name in list(self._objects["pods"]):
                    self._pod(name)
                self._collect()

    def _job(self, name: str) -> None:
        job = self._objects["jobs"][name]
        pods = self._owned("pods", job["metadata"]["uid"])
        if "deletionTimestamp" in job["metadata"]:
            for pod in pods:
                if "deletionTimestamp" not in pod["metadata"]:
                    self._delete("pods", pod["metadata"]["name"], None)
            if not pods:
                self._gone("jobs", name)
            return
        status = job["status"]
        if job["spec"].get("suspend") or any(
            one["type"] in ("Complete", "Failed") for one in status.get("conditions", ())
        ):
            return
        if "startTime" not in status:
            status["startTime"] = _now()
            job["_started"] = time.monotonic()
            for index in range(job["spec"]["completions"]):
                self._make_pod(job, index)
            return None
        limit = job["spec"].get("activeDeadlineSeconds")
        if limit and time.monotonic() - job["_started"] > limit:
            for pod in pods:
                self._delete("pods", pod["metadata"]["name"], None)
            return self._finish(name, "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
        phases = [pod["status"]["phase"] for pod in pods]
        if phases.count("Succeeded") == job["spec"]["completions"]:
            self._finish(name, "Complete", "CompletionsReached", "")
        elif "Failed" in phases or len(pods) < job["spec"]["completions"]:
            conditions = [one for pod in pods for one in pod["status"].get("conditions", ())]
            taken = any(one["type"] == "DisruptionTarget" for one in conditions)
            for pod in pods:  # those that still work are ended
                if pod["status"]["phase"] in ("Pending", "Running") and "deletionTimestamp" not in pod["metadata"]:
                    self._delete("pods", pod["metadata"]["name"], None)
            reason = "PodFailurePolicy" if taken else "BackoffLimitExceeded"
            self._finish(name, "Failed", reason, "Job has reached the specified backoff limit")
        return None

    def _finish(self, name: str, kind: str, reason: str, message: str) -> None:
        _set_condition(self._objects["jobs"][name], kind, "True", reason, message)
        self._changed("jobs", name)

    def _make_pod(self, job: dict[str, Any], index: int) -> None:
        template, name = deepcopy(job["spec"]["template"]), f"{job['metadata']['name']}-{uuid.uuid4().hex[:5]}"
        if job["spec"].get("completionMode") == "Indexed":
            name = f"{job['metadata']['name']}-{index}-{uuid.uuid4().hex[:5]}"
            template["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = str(index)
            template["spec"]["hostname"] = f"{job['metadata']['name']}-{index}"
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        template["metadata"] |= {"name": name, "namespace": job["metadata"]["namespace"], "ownerReferences": [owner]}
        template["metadata"]["labels"]["batch.kubernetes.io/job-name"] = job["metadata"]["name"]
        self.create("pods", {"apiVersion": "v1", "kind": "Pod", **template, "status": {"phase": "Pending"}})

    def _pod(self, name: str) -> None:
        pod = self._objects["pods"][name]
        process = self._processes.get(name)
        if process is not None:
            return self._running(name, pod, process)
        if "deletionTimestamp" in pod["metadata"]:
            return self._gone("pods", name)
        if pod["status"]["phase"] != "Pending":
            return None
        if "nodeName" not in pod["spec"]:
            return self._schedule(name, pod)
        return self._start(name, pod)

    def _schedule(self, name: str, pod: dict[str, Any]) -> None:
        words: list[str] = []
        for node in self.nodes:
            why = unfit(pod, node, [one for one in self._objects["pods"].values() if _holds(one, node)])
            if not why:
                pod["spec"]["nodeName"] = node.name
                _set_condition(pod, "PodScheduled", "True", "", "")
                return self._changed("pods", name)
            words.append(why)
        told = ", ".join(f"{words.count(why)} {why}" for why in dict.fromkeys(words))
        message = f"0/{len(self.nodes)} nodes are available: {told}."
        if _set_condition(pod, "PodScheduled", "False", "Unschedulable", message):
            self._changed("pods", name)
        return None

    def _start(self, name: str, pod: dict[str, Any]) -> None:
        container = pod["spec"]["containers"][0]
        if container["image"] not in self.images:
            message = f'failed to pull and unpack image "{container["image"]}": {container["image"]}: not found'
            return self._waits(name, pod, "ErrImagePull", message)
        wanted = [one["secretRef"]["name"] for one in container.get("envFrom", ())]
        missing = [one for one in wanted if one not in self._objects["secrets"]]
        if missing:
            return self._waits(name, pod, "CreateContainerConfigError", f'secret "{missing[0]}" not found')
        environment = {
            "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/tmp",
            "PYTHONPATH": str(ROOT),
        }
        for one in wanted:
            environment |= self._objects["secrets"][one].get("stringData", {})
        environment |= {one["name"]: one["value"] for one in container.get("env", ())}
        index = pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index")
        if index is not None:
            environment |= {"JOB_COMPLETION_INDEX": index, "GLOO_SOCKET_IFNAME": "lo"}  # all pods are on loopback
        folder = self.folder / name
        folder.mkdir()
        self._processes[name] = Process(pod, environment, folder, "127.0.0.1 localhost\n" + self._names())
        self.started.append(name)
        self._state(name, pod, "Running", {"running": {"startedAt": _now()}})
        return None

    def _names(self) -> str:
        """What the cluster's DNS knows: pods with a host name that a headless Service of their subdomain selects."""
        lines = []
        for pod in self._objects["pods"].values():
            host, service = pod["spec"].get("hostname"), self._objects["services"].get(pod["spec"].get("subdomain"))
            labels = pod["metadata"]["labels"]
            if host and service and service["spec"]["selector"].items() <= labels.items():
                lines.append(f"127.0.0.1 {host}.{service['metadata']['name']}\n")
        return "".join(lines)

    def _waits(self, name: str, pod: dict[str, Any], reason: str, message: str) -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        if pod["status"].get("containerStatuses", [{}])[0].get("state") != state:
            self._state(name, pod, "Pending", state)

    def _running(self, name: str, pod: dict[str, Any], process: Process) -> None:
        if process.kill_at is not None and time.monotonic() > process.kill_at:
            process.signal(signal.SIGKILL)
        code = process.code()
        if code is None or self.node_is_lost(pod):
            return
        if pod["status"]["phase"] == "Running":
            reason = process.reason or ("Completed" if code == 0 else "Error")
            ended = {"exitCode": code, "reason": reason, "startedAt": _now(), "finishedAt": _now()}
            self._state(name, pod, "Failed" if code else "Succeeded", {"terminated": ended})
            process.counted_at = time.monotonic() + _COUNTED_SECONDS
        elif "deletionTimestamp" in pod["metadata"] and time.monotonic() > process.counted_at:
            self._gone("pods", name)

    def _state(self, name: str, pod: dict[str, Any], phase: str, state: dict[str, Any]) -> None:
        image = pod["spec"]["containers"][0]["image"]
        container = {
            "name": "stage",
            "image": image,
            "imageID": image,
            "ready": phase == "Running",
            "restartCount": 0,
            "state": state,
        }
        pod["status"] |= {"phase": phase, "containerStatuses": [container]}
        self._changed("pods", name)

    def _collect(self) -> None:
        """Delete what has lost its owner."""
        owners = {one["metadata"]["uid"] for one in self._objects["jobs"].values()}
        for kind in ("pods", "secrets", "services"):
            for name, body in list(self._objects[kind].items()):
                references = body["metadata"].get("ownerReferences", [])
                if any(one["uid"] not in owners for one in references) and "deletionTimestamp" not in body["metadata"]:
                    self.delete(kind, name, {})

    def _owned(self, kind: str, uid: str) -> list[dict[str, Any]]:
        every = self._objects[kind].values()
        return [one for one in every if any(o["uid"] == uid for o in one["metadata"].get("ownerReferences", ()))]


class _Handler(BaseHTTPRequestHandler):
    """The requests that the client makes."""

    cluster: Cluster
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_POST(self) -> None:
        self._serve(self._post)

    def do_DELETE(self) -> None:
        self._serve(self._remove)

    def log_message(self, format: str, *args: object) -> None:
        return None

    def _serve(self, act: Callable[[str, str | None, bool, dict[str, str]], None]) -> None:
        parts = urlsplit(self.path)
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.cluster.requests.append(f"{self.command} {parts.path}")
        found = _PATH.fullmatch(parts.path)
        if not self.cluster.answers:  # a connection that was kept open
            self.close_connection = True
            return None
        with suppress(BrokenPipeError, ConnectionResetError):
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._fail(401, "Unauthorized")
            if found is None:
                return self._fail(404, f"the server could not find {parts.path}")
            if fault := self._fault(parts.path):
                if fault.late:
                    self.wfile = io.BytesIO()  # the answer goes nowhere
                    act(found[2], found[3], bool(found[4]), dict(parse_qsl(parts.query)))
                    self.close_connection = True
                    return None
                return self._fail(fault.status, f"the server says {fault.status}", fault.headers)
            act(found[2], found[3], bool(found[4]), dict(parse_qsl(parts.query)))
        return None

    def _fault(self, path: str) -> Fault | None:
        with self.cluster.lock:
            for fault in self.cluster.faults:
                if fault.times and fault.method == self.command and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def _get(self, kind: str, name: str | None, log: bool, query: dict[str, str]) -> None:
        if name is None and query.get("watch") == "True":
            return self._watch(kind, query)
        with self.cluster.lock:
            if name is None:
                items = deepcopy(self.cluster.list(kind, query.get("labelSelector", "")))
                version = {"resourceVersion": self.cluster.version}
                group = "batch/v1" if kind == "jobs" else "v1"
                return self._answer(
                    200, {"kind": f"{_KINDS[kind]}List", "apiVersion": group, "metadata": version, "items": items}
                )
            body = deepcopy(self.cluster.get(kind, name))
        if body is None:
            return self._fail(404, f'{kind} "{name}" not found')
        return self._log(body, query) if log else self._answer(200, body)

    def _post(self, kind: str, name: str | None, log: bool, query: dict[str, str]) -> None:
        try:
            made = self.cluster.create(kind, self.body)
        except KeyError:
            return self._fail(409, f'{kind} "{self.body["metadata"]["name"]}" already exists', reason="AlreadyExists")
        return self._answer(201, made)

    def _remove(self, kind: str, name: str | None, log: bool, query: dict[str, str]) -> None:
        body = self.cluster.get(kind, name or "")
        if body is None:
            return self._fail(404, f'{kind} "{name}" not found')
        uid = (self.body.get("preconditions") or {}).get("uid")
        if uid and uid != body["metadata"]["uid"]:
            return self._fail(409, "the UID in the precondition does not match", reason="Conflict")
        told = {"gracePeriodSeconds": int(query["gracePeriodSeconds"])} if "gracePeriodSeconds" in query else {}
        self.cluster.delete(kind, name or "", {**self.body, **told})
        return self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _watch(self, kind: str, query: dict[str, str]) -> None:
        cluster, epoch, version = self.cluster, self.cluster.epoch, int(query.get("resourceVersion") or 0)
        wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
        until = time.monotonic() + float(query.get("timeoutSeconds") or 60)
        self._begin("application/json")
        if cluster.expired(version):
            gone = {
                "kind": "Status",
                "code": 410,
                "reason": "Expired",
                "message": f"too old resource version: {version}",
            }
            self._chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return self._chunk(b"")
        while (time.monotonic() < until or cluster.slow_watch) and cluster.epoch == epoch:
            if not cluster.slow_watch:
                for number, what, body in cluster.since(version, kind):
                    version = number
                    if wanted.items() <= body["metadata"].get("labels", {}).items():
                        self._chunk(json.dumps({"type": what, "object": body}).encode() + b"\n")
            time.sleep(0.02)
        if cluster.epoch == epoch:
            return self._chunk(b"")
        self.close_connection = True
        return None

    def _log(self, pod: dict[str, Any], query: dict[str, str]) -> None:
        cluster, epoch, name = self.cluster, self.cluster.epoch, pod["metadata"]["name"]
        process = cluster.process(name)
        if process is None:
            return self._fail(400, 'container "stage" in pod is waiting to start: ContainerCreating')
        if cluster.node_is_lost(pod):
            return self._fail(500, "Get https://10.0.0.7:10250/containerLogs: dial tcp 10.0.0.7:10250: i/o timeout")
        self._begin("text/plain")
        given, since = 0, query.get("sinceTime", "")[:19]
        while cluster.epoch == epoch and not cluster.node_is_lost(pod):
            over = process.code() is not None
            lines = process.lines[given:]
            given += len(lines)
            told = b"".join(stamp.encode() + b" " + line for stamp, line in lines if stamp[:19] >= since)
            if told:
                self._chunk(told)
            if over or query.get("follow") != "true":
                return self._chunk(b"")
            time.sleep(0.02)
        for stamp, line in process.lines[given : given + 1]:
            self._chunk((stamp.encode() + b" " + line)[: len(stamp) + 3])  # it breaks off within a line
        self.close_connection = True
        return None

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _fail(self, status: int, message: str, headers: dict[str, str] | None = None, reason: str = "") -> None:
        self._answer(
            status,
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "message": message,
                "reason": reason,
                "code": status,
            },
            headers,
        )

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def kubernetes(folder: Path, nodes: list[Node] | None = None) -> Iterator[Cluster]:
    """Run a cluster; skips where processes cannot have name spaces of their own."""
    pytest.importorskip("kubernetes", reason="pip install 'mloc-dagster[k8s]'")
    if subprocess.run(["unshare", "-m", "-p", "-f", "--mount-proc", "true"], capture_output=True).returncode:
        pytest.skip("unshare -m -p needs root")
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder, nodes or [Node("node-1")])
    try:
        yield cluster
    finally:
        cluster.end()


def _mounts(pod: dict[str, Any], folder: Path) -> Iterator[tuple[Path, str]]:
    """Folders of this machine and where the pod has them."""
    volumes = {one["name"]: one for one in pod["spec"].get("volumes", ())}
    for mount in pod["spec"]["containers"][0].get("volumeMounts", ()):
        volume = volumes[mount["name"]]
        if "hostPath" in volume:
            outer = Path(volume["hostPath"]["path"])
        elif "persistentVolumeClaim" in volume:
            outer = folder.parent / "claims" / volume["persistentVolumeClaim"]["claimName"]
        else:
            outer = folder / f"volume-{mount['name']}"
        outer.mkdir(parents=True, exist_ok=True)
        yield outer, mount["mountPath"]


def unfit(pod: dict[str, Any], node: Node, there: list[dict[str, Any]]) -> str:
    """Why a pod cannot go to a node, in the scheduler's words; empty when it can."""
    spec = pod["spec"]
    if node.lost:
        return "node(s) had untolerated taint {node.kubernetes.io/unreachable: }"
    for key, value in node.taints:
        if not any(_tolerates(one, key, value) for one in spec.get("tolerations", ())):
            return f"node(s) had untolerated taint {{{key}: {value}}}"
    terms = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    fits = [_matches(term, node) for term in terms.get("nodeSelectorTerms", ())]
    if not spec.get("nodeSelector", {}).items() <= node.labels.items() or (fits and not any(fits)):
        return "node(s) didn't match Pod's node affinity/selector"
    for name, asked in spec["containers"][0]["resources"]["requests"].items():
        taken = sum(_amount(one["spec"]["containers"][0]["resources"]["requests"].get(name, "0")) for one in there)
        if taken + _amount(asked) > _amount(node.allocatable.get(name, "0")):
            return f"Insufficient {name}"
    return ""


def _matches(term: dict[str, Any], node: Node) -> bool:
    return all(
        node.labels.get(one["key"]) in one["values"] for one in term["matchExpressions"] if one["operator"] == "In"
    )


def _tolerates(toleration: dict[str, Any], key: str, value: str) -> bool:
    if toleration.get("key", key) != key:
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value", "") == value


def _holds(pod: dict[str, Any], node: Node) -> bool:
    return pod["spec"].get("nodeName") == node.name and pod["status"]["phase"] in ("Pending", "Running")


def _amount(text: str) -> float:
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    if text.endswith("m"):
        return float(text[:-1]) / 1000
    return float(text.removesuffix(unit)) * _UNITS.get(unit, 1)


def _set_condition(body: dict[str, Any], kind: str, status: str, reason: str, message: str) -> bool:
    """Set a condition; returns whether that changes anything."""
    made = {"type": kind, "status": status, "reason": reason, "message": message}
    conditions = body["status"].setdefault("conditions", [])
    if any(made.items() <= one.items() for one in conditions):
        return False
    conditions[:] = [*(one for one in conditions if one["type"] != kind), {**made, "lastTransitionTime": _now()}]
    return True


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _nano() -> str:
    nanoseconds = time.time_ns()
    whole = datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{nanoseconds % 10**9:09d}Z"
