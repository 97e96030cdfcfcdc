"""Load a task file: every fault of it at once, or a typed whole."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mloc_dagster.spec import checks, composition, dialects, document
from mloc_dagster.spec.canonical import canonicalise
from mloc_dagster.spec.composition import Draft
from mloc_dagster.spec.faults import Fault, SpecError, shown
from mloc_dagster.spec.paths import make_absolute
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.taskfile import Stage, TaskFile
from mloc_dagster.spec.tree import MAX_BYTES, Mapping, Origin, merge, plain, read
from mloc_dagster.spec.typed import validate
from mloc_dagster.spec.workflow import WorkflowConfig

_BASE = re.compile(r"^# mloc:base=(.+)$", re.MULTILINE)


def load_file(path: Path | str) -> TaskFile:
    """Load a task file from disk; raises SpecError with every fault, also when it cannot be read."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            [Fault(1, 1, "", "the file is not UTF-8 text", str(error)[:80], "save it as UTF-8", str(path))]
        ) from None
    except OSError as error:
        way_out = "check the path" if isinstance(error, FileNotFoundError) else "check the permissions"
        raise SpecError(
            [Fault(0, 0, "", "the file cannot be read", error.strerror or "", way_out, str(path))]
        ) from None
    return load_text(text, file=str(path), name=path.stem, base=path.resolve().parent, path=path)


def load_text(
    text: str, *, file: str = "<text>", name: str = "task", base: Path | None = None, path: Path | None = None
) -> TaskFile:
    """Load a task file from its text.

    `name` is the task's name when the file gives none; `base` is the folder that relative paths start from, unless the
    text says another one (as a submitted copy does). Raises SpecError.
    """
    written = _BASE.findall(text)
    folder = Path(written[-1]) if written else (base or Path.cwd())
    tree, faults = read(text)
    if tree is not None and not isinstance(tree, Mapping):
        faults.append(Fault(1, 1, "", "a task file must be a map", shown(tree), "start with apiVersion: mloc/v1"))
    if not isinstance(tree, Mapping):
        raise SpecError([fault.in_file(file) for fault in faults])
    task = _Loader(text, folder, path, faults).load(tree, name)
    if faults or task is None:
        raise SpecError([fault.in_file(file) for fault in faults])
    return TaskFile(**{**vars(task), "warnings": tuple(sorted({w.in_file(file) for w in task.warnings}))})


def with_base(text: str, base: Path) -> str:
    """Return the text with the folder that its relative paths start from written at its end."""
    return text if _BASE.search(text) else f"{text.rstrip()}\n\n# mloc:base={base}\n"


class _Loader:
    """One load; `faults` is shared with the caller."""

    def __init__(self, text: str, base: Path, path: Path | None, faults: list[Fault]) -> None:
        self.text, self.base, self.path, self.faults = text, base, path, faults

    def load(self, tree: Mapping, name: str) -> TaskFile | None:
        raw_metadata, spec, here = document.split(tree, self.faults)
        metadata, _, faults = validate(
            canonicalise(raw_metadata, document.Metadata, self.faults), document.Metadata, here
        )
        self.faults.extend(faults)
        spec = spec.copy()
        workflow = self._workflow(spec, here)
        drafts = composition.drafts(spec, here, self.faults)
        requires = self._requires(spec)
        composition.check_order(drafts, self.faults)
        single = len(drafts) == 1 and not drafts[0].name
        task_name = (
            (metadata.name if metadata else None) or re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "task"
        )
        annotations = raw_metadata.get("annotations")
        merged = [(draft, self._merge(spec, draft, annotations)) for draft in composition.in_order(drafts)]
        stages = [self._stage(draft, keys, single) for draft, keys in merged]
        ready = [stage for stage in stages if stage]
        whole = len(ready) == len(drafts) and metadata is not None
        trees = {draft.name or self._single_name(keys): keys for draft, keys in merged}
        self.faults.extend(checks.references(trees, drafts, requires, spec))
        for stage in ready:
            self.faults.extend(checks.stage(stage, trees[stage.name]))
        if not whole or self.faults or metadata is None:
            return None
        warnings = [*checks.unused(ready, trees), *checks.notices(ready, trees, workflow, spec)]
        return TaskFile(
            name=task_name,
            owner=metadata.owner or "unknown",
            project=metadata.project,
            description=str(metadata.annotations.get("description") or ""),
            kind=str(tree.get("kind") or ""),
            stages=tuple(ready),
            workflow=workflow,
            requires=requires,
            text=self.text,
            digest=hashlib.sha256(f"{self.base}\0{self.text}".encode()).hexdigest(),
            path=self.path,
            warnings=tuple(warnings),
        )

    def _workflow(self, spec: Mapping, here: Origin) -> WorkflowConfig:
        if "workflow_config" not in spec:
            return WorkflowConfig()
        value, origin = spec.take("workflow_config")
        if value is None:
            return WorkflowConfig()
        if not isinstance(value, Mapping):
            self.faults.append(
                Fault(*origin.value, origin.text, "must be a map", shown(value), "write a map: key: value lines")
            )
            return WorkflowConfig()
        workflow, _, faults = validate(canonicalise(value, WorkflowConfig, self.faults), WorkflowConfig, origin)
        self.faults.extend(faults)
        return workflow or WorkflowConfig()

    def _requires(self, spec: Mapping) -> tuple[str, ...]:
        for key in ("dependsOn", "dependencies", "depends_on"):
            if key in spec:
                value, origin = spec.take(key)
                names = [value] if isinstance(value, str) else value
                if isinstance(names, list) and all(isinstance(name, str) for name in names):
                    return tuple(names)
                if value is not None:
                    self.faults.append(
                        Fault(
                            *origin.value, origin.text, "must be a list of task names", shown(value), "write [task-a]"
                        )
                    )
        return ()

    def _merge(self, spec: Mapping, draft: Draft, annotations: object) -> Mapping:
        own_type = draft.keys.get("taskType", draft.keys.get("task_type"))
        task_type = own_type or spec.get("taskType") or spec.get("task_type") or ""
        base = canonicalise(dialects.rewrite(spec, str(task_type), self.faults), StageSpec, self.faults)
        own = canonicalise(dialects.rewrite(draft.keys, str(task_type), self.faults), StageSpec, self.faults)
        merged = merge(base, own)
        slo = annotations if isinstance(annotations, Mapping) and "sloSeconds" in annotations else None
        if slo is not None and "slo_seconds" not in merged:
            merged.put("slo_seconds", slo["sloSeconds"], slo.origins["sloSeconds"])
        return merged

    def _stage(self, draft: Draft, tree: Mapping, single: bool) -> Stage | None:
        self.faults.extend(checks.task_type(tree, draft.origin))
        if "task_type" not in tree:
            return None
        typed, deferred, faults = validate(tree, StageSpec, draft.origin)
        self.faults.extend(faults)
        if typed is None:
            return None
        raw = plain(tree)
        make_absolute(raw, self.base)
        name = self._single_name(tree) if single else draft.name
        return Stage(
            name,
            draft.depends_on,
            StageSpec.model_validate(_without(raw, deferred)),
            raw,
            deferred,
            draft.origin.key[0],
        )

    @staticmethod
    def _single_name(tree: Mapping) -> str:
        return re.sub(r"[^A-Za-z0-9_-]", "_", str(tree.get("task_type", "task")))


def _without(raw: dict, deferred: tuple[str, ...]) -> dict:
    """Return a copy of `raw` without the deferred keys."""
    copy = plain(raw)
    for dotted in deferred:
        inner = copy
        *parents, last = dotted.split(".")
        for part in parents:
            inner = inner[int(part)] if isinstance(inner, list) else inner[part]
        if isinstance(inner, list):
            inner[int(last)] = {}
        else:
            inner.pop(last, None)
    return copy


__all__ = ["load_file", "load_text", "with_base"]
