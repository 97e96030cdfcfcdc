"""The libraries of stages, loaded once, so that a child can be made what a new process would be that loads them."""

from __future__ import annotations

import ctypes
import importlib
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType

_LOADED = (
    "executors.host",
    "executors.inference.transformers_engine",
    "executors.training.supervised",
    "executors.training.reward",
    "executors.training.dpo",
    "executors.training.ppo.recipe",
)
"""With them come torch, Transformers, PEFT, TRL and Datasets. GRPO is not here: where vLLM is installed, it loads that
too. What is not installed is left out."""
_NAMES_OF_LAZY_ONES = {
    "transformers": (
        "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer", "Trainer",
    ),
}  # fmt: skip
_OFFLINE = {
    "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
"""As each job has them (`host`)."""
_FOLDERS = ("HF_DATASETS_CACHE", "HF_MODULES_CACHE")
"""Variables that differ by job, and whose value libraries keep from when they are loaded."""
_NOWHERE = "/nonexistent/mloc"
_NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""The memory allocator of Arrow would start a thread; torch would open the GPU just to see whether there is one."""
_TORCH_SEED = 67280421310721
"""The seed of a generator that nobody has seeded (torch's `default_rng_seed_val`)."""
_CUDA_NOT_INITIALIZED = 3
_LOW_PRIORITY = 10
_END_OF_THREAD_SECONDS = 2.0
"""The kernel may still know for a moment a thread that has ended."""


class CannotFork(Exception):
    """Something that was loaded has done what children must not inherit; the message says what."""


@dataclass(frozen=True)
class Loaded:
    """What loading has read and left.

    `read`: variables that were read; `had`: the environment before; `left`: variables that libraries have set;
    `kept`: (module, name, variable, value) of constants that were made from a variable of the job.
    """

    read: frozenset[str]
    had: Mapping[str, str]
    left: Mapping[str, str]
    kept: tuple[tuple[ModuleType, str, str, str | PurePath], ...]


def load(devices: str) -> Loaded:
    """Load the libraries, at low priority; `devices` is the value of CUDA_VISIBLE_DEVICES.

    Raises CannotFork when a GPU was touched or a thread was left.
    """
    had, read = dict(os.environ), _Reading()
    os.environ |= _OFFLINE | _NO_THREADS | {"CUDA_VISIBLE_DEVICES": devices}
    os.environ |= {variable: _mark(variable) for variable in _FOLDERS}
    before = dict(os.environ)
    with read:
        _in_a_thread_of_low_priority()
    left = {key: value for key, value in os.environ.items() if before.get(key) != value}
    _check()
    return Loaded(frozenset(read.names), had, left, tuple(_constants()))


def adopt(loaded: Loaded) -> None:
    """In a child, once its environment is the job's: have the libraries be as if they were loaded now."""
    os.environ |= loaded.left
    for module, name, variable, value in loaded.kept:
        text = str(value).replace(_mark(variable), os.environ[variable])
        setattr(module, name, type(value)(text))
    tempfile.tempdir = None
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    torch = sys.modules.get("torch")
    if torch is not None and torch.initial_seed() != _TORCH_SEED:
        torch.default_generator.seed()


class _Reading:
    """Takes note of the environment variables that are read meanwhile, by Python code."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __enter__(self) -> None:
        names, kind = self.names, type(os.environ)

        class Noting(kind):
            def __getitem__(self, key: str) -> str:
                names.add(key)
                return super().__getitem__(key)

        self._kind = kind
        os.environ.__class__ = Noting

    def __exit__(self, *_: object) -> None:
        os.environ.__class__ = self._kind


def _in_a_thread_of_low_priority() -> None:
    """A thread can be slower than its process (setpriority(2)), and need not be made faster again: it ends."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            niceness = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(niceness, _LOW_PRIORITY))
            _import_all()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _import_all() -> None:
    for module in _LOADED:
        with suppress(ModuleNotFoundError):
            importlib.import_module(module)
    for module, names in _NAMES_OF_LAZY_ONES.items():
        for name in names if module in sys.modules else ():
            getattr(sys.modules[module], name)


def _check() -> None:
    deadline = time.monotonic() + _END_OF_THREAD_SECONDS
    while len(threads := os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    if len(threads) > 1:
        names = ", ".join(Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in threads)
        raise CannotFork(f"libraries have left threads running: {names}")
    torch = sys.modules.get("torch")
    if (torch is not None and torch.cuda.is_initialized()) or _driver_is_in_use():
        raise CannotFork("a library has opened the GPU while it was loaded")


def _driver_is_in_use() -> bool:
    """Whether the driver of CUDA was initialised by anything here; it would be of no use in a child."""
    if "libcuda.so" not in Path("/proc/self/maps").read_text("utf-8", "replace"):
        return False
    count = ctypes.c_int()
    return ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)) != _CUDA_NOT_INITIALIZED


def _mark(variable: str) -> str:
    return f"{_NOWHERE}/{variable}"


def _constants() -> Iterator[tuple[ModuleType, str, str, str | PurePath]]:
    """Find the constants by their values, whatever they are called, so that none is missed."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if issubclass(type(value), str | PurePath) and module is not sys.modules[__name__]:
                for variable in _FOLDERS:
                    if _mark(variable) in str(value):
                        yield module, name, variable, value
