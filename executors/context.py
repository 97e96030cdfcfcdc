"""What an executor is given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from executors.progress import ProgressSink
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.stage import StageSpec

if TYPE_CHECKING:
    from executors.prompts import PromptRows

__all__ = ["ProgressSink", "TaskContext"]


@dataclass(frozen=True)
class TaskContext:
    """One stage, typed and with its references resolved, and the folders it reads and writes."""

    task_id: str
    task_name: str
    stage: str
    spec: StageSpec
    out: Path
    """Work folder. It may hold what an interrupted attempt left; finished files stay in it."""
    model_path: Path | None = None
    """Folder of `model.source`, ready for transformers."""
    model_digest: str | None = None
    reward_model_path: Path | None = None
    """Folder of the model that `reward_model.identifier` names."""
    data_path: Path | None = None
    """File or folder of `data.url` or `data.dataset_name`; the split is not applied yet."""
    embedding_path: Path | None = None
    """Folder of the model that `rag.embedding` names."""
    reranker_path: Path | None = None
    """Folder of the cross-encoder that `rag.search.rerank_model` names."""
    document_paths: tuple[Path | None, ...] = ()
    """File or folder of each source of `rag.documents`; None for one that is not pulled."""
    cache: Path | None = None
    """Folder that outlives tasks; whatever is kept in it can be made again."""
    results: Path | None = None
    """Folder `<task_id>/<stage>/` of finished tasks, for `taskId` alternatives."""
    devices: tuple[str, ...] = ()
    """Granted devices; none means the CPU."""
    code_allowed: bool = False
    """Whether the deployment lets a model's own code run."""
    progress: ProgressSink = field(default_factory=lambda: ProgressSink(Path("progress.jsonl")))
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the work must store its state and end."""
    envelopes: Callable[[str], Mapping[str, Json]] = field(default=lambda stage: {})
    """Envelope of an ancestor stage; raises BadReference when there is none."""
    rows: PromptRows | None = None
    """The rows of a shard, which keep their numbers; None: the work is all that `data` gives."""
    redact: Callable[[Json], Json] = field(default=lambda value: value)
    """Hides resolved secrets; whatever is written to a file passes through it."""
