"""Warm engines: `endpoint(ctx)` lends a loaded model, and whoever comes next finds it still loaded.

Settings of the deployment: MLOC_ENGINE_IDLE, seconds that an engine stays loaded without users (default 120; 0: no
engine outlives its stage, and `inference` and `rag_inference` load the model in their own process), and
MLOC_ENGINE_MAX, how many engines may stay idle (default 2).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
import requests

from executors.base import ExecutorError, Interrupted
from executors.context import TaskContext
from executors.inference import dtype_of, engine_kind, model_name, weights_of
from executors.inference.adapters import RuntimeAdapter
from executors.inference.engine import Weights
from executors.serving.registry import (
    LEASE_SECONDS,
    EngineFolder,
    EngineSpec,
    EngineState,
    alive,
    engines_of,
    registry_of,
)
from executors.weights import WeightsDigest, digest
from mloc_dagster.files.atomic import new_folder
from mloc_dagster.spec.model import Transformers, Vllm

IDLE, MOST_IDLE = "MLOC_ENGINE_IDLE", "MLOC_ENGINE_MAX"
_IDLE_SECONDS, _MOST_IDLE = 120.0, 2
_BORROWERS = ("inference", "rag_inference", "agent", "agent_inference")
"""Task types that use warm engines."""
_HEARTBEAT_SECONDS = 3.0
_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 5.0
_LOCK_SECONDS = 2.0
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".gguf", ".pth", ".onnx", ".h5", ".msgpack")
_INHERITED = (
    "PATH", "HOME", "USER", "LANG", "LC_", "TZ", "TMPDIR", "PYTHON", "VIRTUAL_ENV", "LD_", "CUDA", "NVIDIA", "NCCL",
    "GLOO", "OMP_", "MKL_", "OPENBLAS", "TORCH", "TOKENIZERS", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY", "VLLM_", "TRITON", "XDG_",
)  # fmt: skip
"""Beginnings of the variables that an engine gets: it outlives the run, so it must not hold the run's secrets."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint; `base_url` ends in `/v1`. `seconds` is how long it took to get it."""

    base_url: str
    api_key: str
    model: str
    start: Literal["warm", "cold"]
    seconds: float


@contextmanager
def endpoint(ctx: TaskContext) -> Iterator[Endpoint]:
    """Lend the stage's model (with its checkpoint and adapters) as an endpoint for as long as the block runs.

    Raises ExecutorError when the model cannot be loaded, Interrupted when the stage is to stop meanwhile.
    """
    weights, used = weights_of(ctx)
    lease = Lease(ctx, weights, used)
    try:
        yield lease.endpoint
    finally:
        lease.close()


def keeps_engines(ctx: TaskContext) -> bool:
    """Whether the deployment keeps engines loaded after a stage."""
    return ctx.cache is not None and idle_seconds() > 0


def idle_seconds() -> float:
    """MLOC_ENGINE_IDLE; raises ExecutorError when it is no number of seconds."""
    return _setting(IDLE, _IDLE_SECONDS)


def free_devices(ctx: TaskContext) -> None:
    """End engines that nobody uses and that hold memory of the stage's devices, unless it may use one itself."""
    if ctx.cache is not None and ctx.devices and ctx.spec.task_type not in _BORROWERS:
        end_idle_on(ctx.cache, ctx.devices)


def end_idle_on(cache: Path, devices: tuple[str, ...]) -> None:
    """End engines that nobody uses and that hold memory of these devices."""
    _end_idle(registry_of(cache), lambda spec: spec.on_gpu and bool(set(spec.devices) & set(devices)))


class Lease:
    """The use of one engine: started when there is none, kept with a heartbeat, replaced when it died."""

    def __init__(self, ctx: TaskContext, weights: Weights, used: WeightsDigest, *, private: bool = False) -> None:
        self._stop = ctx.stop
        self._adapters = weights.adapters
        shared = keeps_engines(ctx) and not private
        self._registry = registry_of(ctx.cache) if ctx.cache else None
        root = self._registry if shared and self._registry else ctx.out / ".cache" / "engines"
        self.spec, self.warnings = engine_spec(ctx, weights, used, private="" if shared else uuid.uuid4().hex)
        self.folder = EngineFolder(root, self.spec.key())
        self._file: Path | None = None
        self._closed = threading.Event()
        self._beating: threading.Thread | None = None
        self.endpoint, self.state = self._open()

    def died(self) -> bool:
        """Whether the engine of this lease is gone."""
        return alive(self.state.pid, self.state.born) is None

    def replace(self) -> None:
        """Get another engine in the place of one that died, which is a cold start unless another user was faster."""
        self._give_back()
        self.endpoint, self.state = self._open()

    def close(self) -> None:
        """Give the engine back; one that nobody else can use ends at once."""
        self._give_back()
        if self.spec.private:
            with self.folder.locked():
                self.folder.end()
            shutil.rmtree(self.folder.root, ignore_errors=True)

    def _open(self) -> tuple[Endpoint, EngineState]:
        begun = time.monotonic()
        with self.folder.locked(self._stop.is_set):
            state = _serving(self.folder)
            start: Literal["warm", "cold"] = "warm" if state else "cold"
            if state is None:
                self.folder.end()
                if self._registry is not None:
                    _make_room(self._registry, self.spec)
                self.folder.prepare(self.spec)
            self._file = self.folder.add_lease()
            self._keep_alive()
            try:
                state = state or _started(self.folder, self._stop)
                model = self._with_adapters(state)
            except BaseException:
                self._give_back()
                if start == "cold":
                    self.folder.end()
                raise
        url = f"http://127.0.0.1:{state.port}/v1"
        return Endpoint(url, self.folder.token(), model, start, time.monotonic() - begun), state

    def _with_adapters(self, state: EngineState) -> str:
        """Load the adapters, and return the name under which the engine applies them."""
        name = self.folder.spec().name
        if not self._adapters:
            return name
        kept = [_kept(self.folder, adapter) for adapter in self._adapters]
        name = "+".join([name, *(path.name for path in kept)])
        paths = [str(path) for path in kept]
        body = {"lora_name": name, "lora_path": paths[0] if self.spec.kind == "vllm" else paths}
        answer = requests.post(
            f"http://127.0.0.1:{state.port}/v1/load_lora_adapter", json=body, timeout=600,
            headers={"Authorization": f"Bearer {self.folder.token()}"},
        )  # fmt: skip
        if not answer.ok and "already been loaded" not in answer.text:
            raise ExecutorError(_message(answer), "Check model.adapters.")
        return name

    def _keep_alive(self) -> None:
        self._closed = threading.Event()
        arguments = (self.folder, self._file, self._closed)
        self._beating = threading.Thread(target=_beat, args=arguments, name="lease", daemon=True)
        self._beating.start()

    def _give_back(self) -> None:
        self._closed.set()
        if self._beating is not None:
            self._beating.join()
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def engine_spec(
    ctx: TaskContext, weights: Weights, used: WeightsDigest, *, private: str = ""
) -> tuple[EngineSpec, list[str]]:
    """What the engine of a stage loads, and warnings. Raises ExecutorError for adapters that it cannot apply."""
    model = ctx.spec.model
    on_gpu = bool(ctx.devices) and not ctx.spec.enforce_cpu and not _is_cpu_torch()
    kind, warnings = engine_kind(ctx, on_gpu)
    options = model.vllm if kind == "vllm" else model.transformers
    dtype, notes = dtype_of(ctx, options and options.dtype, on_gpu)
    rank = 0
    if kind == "vllm" and weights.adapters:
        from executors.inference.vllm_engine import lora_rank, refuse_several

        refuse_several(weights.adapters)
        rank = lora_rank(weights.adapters[0].rank)
    merged = weights.model.name == "merged"
    spec = EngineSpec(
        kind=kind, name=model_name(ctx), model=weights.model,
        digest=f"{'+'.join(used.parts) if merged else used.parts[0]} {_settings_digest(weights.model)}",
        dtype=dtype, devices=ctx.devices if on_gpu else (), on_gpu=on_gpu,
        trust_remote_code=weights.trust_remote_code, transformers=model.transformers or Transformers(),
        vllm=model.vllm or Vllm(), lora_rank=rank, private=private,
        idle_seconds=LEASE_SECONDS if private else idle_seconds(),
        most_idle=max(1, int(_setting(MOST_IDLE, _MOST_IDLE))),
    )  # fmt: skip
    return spec, [*warnings, *notes]


def _settings_digest(model: Path) -> str:
    """Digest of the files beside the weights: configuration, tokenizer, chat template."""
    found = hashlib.sha256()
    for path in sorted(path for path in model.iterdir() if path.is_file() and path.suffix not in _WEIGHT_FILES):
        found.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()


def _serving(folder: EngineFolder) -> EngineState | None:
    """The state of an engine that is there and takes connections."""
    state = folder.state()
    if state is None or not state.ready or folder.process() is None:
        return None
    try:
        socket.create_connection(("127.0.0.1", state.port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return None
    return state


def _started(folder: EngineFolder, stop: threading.Event) -> EngineState:
    """Start the engine and wait until it answers; raises ExecutorError or RuntimeError with what it said."""
    pid = _spawn(folder)
    process = psutil.Process(pid) if psutil.pid_exists(pid) else None
    while True:
        state = folder.state()
        if state is not None and state.ready:
            return state
        fault = folder.fault()
        if fault is not None and fault["user"] == "True":
            raise ExecutorError(fault["what"], fault["hint"])
        if fault is not None or process is None or not process.is_running() or _is_zombie(process):
            told = fault["what"] if fault else "it was killed (out of memory, or from outside)"
            raise RuntimeError(f"the engine could not start: {told}\n{folder.log_tail()}")
        if stop.wait(_POLL_SECONDS):
            raise Interrupted


def _spawn(folder: EngineFolder) -> int:
    """Start the engine's process as nobody's child, so that whoever ends this stage's processes spares it."""
    command = [sys.executable, "-u", "-m", "executors.serving.process", str(folder.path)]
    environment = {key: value for key, value in os.environ.items() if key.startswith(_INHERITED)}
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment |= {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder.path / "modules"),
    }
    log = folder.path / "engine.log"
    shell = ["/bin/sh", "-c", 'log=$1; shift; "$@" >"$log" 2>&1 </dev/null & echo $!', "sh", str(log), *command]
    told = subprocess.run(shell, check=True, capture_output=True, env=environment, start_new_session=True, cwd="/")
    return int(told.stdout)


def _make_room(root: Path, spec: EngineSpec) -> None:
    """End idle engines on the same devices, and the longest idle ones while memory is short of the new weights."""
    devices = set(spec.devices)
    _end_idle(root, lambda other: other.on_gpu and bool(devices & set(other.devices)))
    size = sum(path.stat().st_size for path in spec.model.iterdir() if path.suffix in _WEIGHT_FILES)
    needed = 0 if spec.on_gpu else 2 * size if spec.dtype == "float32" else size
    _end_idle(root, lambda other: psutil.virtual_memory().available < needed)


def _end_idle(root: Path, wanted: Callable[[EngineSpec], bool]) -> None:
    idle = [(state.idle_since, one) for one in engines_of(root) if (state := one.state()) and state.idle_since]
    for _, folder in sorted(idle, key=lambda pair: pair[0]):
        with folder.locked_soon(_LOCK_SECONDS) as alone, suppress(OSError, ValueError):
            if alone and not folder.leases() and wanted(folder.spec()):
                folder.end()


def _kept(folder: EngineFolder, adapter: RuntimeAdapter) -> Path:
    """A copy of an adapter beside the engine, which may need it when the stage is over; its name is its digest."""
    configuration = (adapter.folder / "adapter_config.json").read_bytes()
    name = hashlib.sha256(digest(adapter.folder).encode() + configuration).hexdigest()[:12]
    kept = folder.path / "adapters" / name
    if not kept.is_dir():
        with new_folder(kept) as partial:
            shutil.copytree(adapter.folder, partial, dirs_exist_ok=True)
    return kept


def _beat(folder: EngineFolder, file: Path, closed: threading.Event) -> None:
    while not closed.wait(_HEARTBEAT_SECONDS):
        with suppress(OSError):
            os.utime(file)


def _setting(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text or default)
    except ValueError:
        value = -1.0
    if value < 0:
        raise ExecutorError(
            f"{name} is {text!r}, which is no number from 0 on.", f"Write a number, such as {default:g}."
        )
    return value


def _is_cpu_torch() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return True


def _is_zombie(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def _message(answer: requests.Response) -> str:
    try:
        error = answer.json()
        return str(error.get("error", error).get("message") or error)
    except (ValueError, AttributeError):
        return f"HTTP {answer.status_code}: {answer.text[:300]}"
