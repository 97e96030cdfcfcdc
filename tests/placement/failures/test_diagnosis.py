"""Causes out of exit codes, messages and the kernel's count."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.failures.diagnosis import of_error, of_exit, oom_kills


@pytest.mark.parametrize(
    "message",
    [
        "MemoryError: ",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB",
        "RuntimeError: CUDA error: out of memory",
        "RuntimeError: HIP out of memory. Tried to allocate",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_messages_that_mean_want_of_memory(message: str) -> None:
    assert of_error("internal", message) is Cause.OUT_OF_MEMORY
    assert of_error("user", message) is Cause.USER


def test_what_libraries_raise_here_is_recognised() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert of_error("internal", f"RuntimeError: {caught.value}") is Cause.OUT_OF_MEMORY
    error = torch.OutOfMemoryError("anything")
    assert of_error("internal", f"{type(error).__name__}: {error}") is Cause.OUT_OF_MEMORY


def test_other_messages_do_not() -> None:
    for message in ("ValueError: memory must be a number", "RuntimeError: out of range", "KeyError: 'MemoryErrors'"):
        assert of_error("internal", message) is Cause.INTERNAL


@pytest.mark.parametrize(
    ("code", "kernel", "cause"),
    [
        (-9, True, Cause.OUT_OF_MEMORY),
        (-9, False, Cause.WORKER_LOST),
        (-15, False, Cause.WORKER_LOST),
        (143, False, Cause.WORKER_LOST),
        (-11, True, Cause.INTERNAL),
        (0, False, Cause.INTERNAL),
        (1, False, Cause.INTERNAL),
    ],
)
def test_how_work_ended_without_a_word(code: int, kernel: bool, cause: Cause) -> None:
    assert of_exit(code, kernel) is cause


def test_the_kernel_counts_what_it_kills() -> None:
    told = [line for line in Path("/proc/vmstat").read_text().splitlines() if line.startswith("oom_kill ")]
    assert oom_kills() >= (int(told[0].split()[1]) if told else 0)
