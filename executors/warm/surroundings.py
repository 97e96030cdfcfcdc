"""What loading depends on besides the code: a warm process serves only stages that would have loaded the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_READ_WHEN_LOADED = (
    "ACCELERATE_", "AOT", "ARROW_", "BITSANDBYTES_", "BLIS_", "BNB_", "CUDA_", "CURL_CA", "DATASETS_", "DS_", "FSSPEC_",
    "GLIBC_", "GOMP_", "GOTO", "HF_", "HIP_", "HUGGINGFACE_", "JE_", "KINETO_", "KMP_", "LC_", "LD_", "MALLOC_", "MKL_",
    "NCCL_", "NPY_", "NUMEXPR_", "NUMPY_", "NVIDIA_", "OMP_", "OPENBLAS_", "OPENSSL_", "PANDAS_", "PEFT_", "PYDANTIC_",
    "PYTHON", "PYTORCH_", "RAYON_", "REQUESTS_CA", "ROCR_", "RUST_", "SAFETENSORS_", "SSL_CERT", "TOKENIZERS_", "TORCH",
    "TRANSFORMERS_", "TRITON_", "TRL_", "USE_", "XDG_", "XLA_",
)  # fmt: skip
"""Prefixes of variables that the interpreter, the C libraries or the Python libraries read when they are loaded."""
_PLACES = ("CI", "HOME", "LANG", "LOGNAME", "PATH", "TEMP", "TMP", "TMPDIR", "TZ", "USER")
_SECRET = re.compile(r"(?:^|_)(?:TOKENS?|KEYS?|SECRETS?|PASSWORDS?|CREDENTIALS?|AUTH)(?:_|$)", re.IGNORECASE)
"""None of these is read when a library is loaded; a warm process is to hold no secret."""
_BY_JOB = frozenset({
    "CUDA_VISIBLE_DEVICES", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE",
    "HF_MODULES_CACHE", "TOKENIZERS_PARALLELISM",
})  # fmt: skip
"""Set for each job (`host`); `libraries` sees to their effect."""
_OF_THE_TERMINAL = frozenset({"COLUMNS", "LINES", "OLDPWD", "PWD", "SHELL", "SHLVL", "TERM", "_"})
"""They change nothing for a program whose output is a file."""
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_ROOT = Path(__file__).parents[2]


def loading(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that loading depends on, and no secret: all that a warm process gets of an environment."""
    return {
        key: value
        for key, value in sorted(environment.items())
        if (key in _PLACES or key.startswith(_READ_WHEN_LOADED)) and key not in _BY_JOB and not _SECRET.search(key)
    }


def name(environment: Mapping[str, str], *, on_gpu: bool) -> str:
    """Return one name (hex) for the interpreter, the place of the code, the variables, and the bounds of this process.

    With a GPU, libraries choose other code while they are loaded, so a stage that has one is not forked from a process
    that saw none.
    """
    parts = [sys.executable, sys.prefix, str(_ROOT), on_gpu, sorted(loading(environment).items()), _bounds()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def other(read: frozenset[str], had: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """Return a variable that was read when the libraries were loaded and that a job has another value of."""
    count = sorted(read - _BY_JOB - _OF_THE_TERMINAL)
    return next((key for key in count if had.get(key) != wanted.get(key)), None)


def folder() -> Path:
    """Return the folder of this user's sockets, which nobody else can open; raises OSError when it is another's."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and os.access(runtime, os.W_OK) else Path(tempfile.gettempdir())
    path = base / f"mloc-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OSError(f"{path} is not a folder that only this user can open")
    return path


def _bounds() -> list[object]:
    """What a child cannot be given later: how it is scheduled, its limits, its groups, and what it can see."""
    limits = [resource.getrlimit(getattr(resource, key)) for key in sorted(dir(resource)) if key.startswith("RLIMIT_")]
    seen = [os.readlink(f"/proc/self/ns/{kind}") for kind in _NAMESPACES if os.path.exists(f"/proc/self/ns/{kind}")]
    return [
        os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)), limits,
        os.getuid(), os.getgid(), sorted(os.getgroups()), seen, os.readlink("/proc/self/root"),
        Path("/proc/self/cgroup").read_text("utf-8"),
    ]  # fmt: skip
