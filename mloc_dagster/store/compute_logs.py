"""What steps print, kept by step as Dagster's UI expects it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dagster import DagsterInvalidConfigError, Field, StringSource
from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._serdes import ConfigurableClassData
from dagster._utils import ensure_file, touch_file


class ComputeLogs(LocalComputeLogManager):
    """Stock logs, without the four processes that stock starts for each step to mirror them.

    Where output goes to a file, as a run worker's does, nobody watches it: it is appended there when the step ends.
    Output to a terminal or a pipe is mirrored at once, as stock does. `base_dir`: the folder (default: `storage` below
    DAGSTER_HOME, as in stock).
    """

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """What `dagster.yaml` may set."""
        return {"base_dir": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> ComputeLogs:
        """Make one from `dagster.yaml`."""
        home = os.environ.get("DAGSTER_HOME")
        folder = config_value.get("base_dir") or (home and str(Path(home) / "storage"))
        if not folder:
            hint = "set base_dir below compute_logs in dagster.yaml, or set DAGSTER_HOME"
            raise DagsterInvalidConfigError(f"ComputeLogs has no folder; {hint}", [], config_value)
        return cls(folder, inst_data=inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        """Keep what is written to the process's stdout and stderr inside the block."""
        if not (_goes_to_file(sys.stdout) and _goes_to_file(sys.stderr)):
            with super().capture_logs(log_key) as context:
                yield context
            return
        with ExitStack() as streams:
            for stream, kind in ((sys.stdout, ComputeIOType.STDOUT), (sys.stderr, ComputeIOType.STDERR)):
                path = self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind])
                ensure_file(path)
                streams.callback(_append, path, stream)
                streams.enter_context(redirect_to_file(stream, path))
            yield CapturedLogContext(log_key)
        touch_file(self.complete_artifact_path(log_key))


def _goes_to_file(stream: IO[str]) -> bool:
    """Whether output goes to a file, or nowhere."""
    try:
        found = os.fstat(stream.fileno())
        return stat.S_ISREG(found.st_mode) or found.st_rdev == os.stat(os.devnull).st_rdev
    except (OSError, ValueError, AttributeError):
        return False


def _append(path: str, stream: IO[str]) -> None:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as kept:
        shutil.copyfileobj(kept, stream)
        stream.flush()
