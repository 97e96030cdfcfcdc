"""Load a task file: every fault of it at once, or a typed whole."""

from __future__ import annotations

import hashlib
import re
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mloc_dagster.spec import (
    checks,
    composition,
    dialects,
    document,
    evaluation_checks,
    notices,
    reference_checks,
    schedule_checks,
    workflow_checks,
)
from mloc_dagster.spec.base import Json, Section
from mloc_dagster.spec.canonical import canonicalise, drop_nulls
from mloc_dagster.spec.composition import Draft
from mloc_dagster.spec.faults import MOST_OF_A_KIND, Fault, SpecError, shown, without_echoes
from mloc_dagster.spec.paths import make_absolute
from mloc_dagster.spec.schedule import Schedule, Triggers
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.taskfile import Stage, TaskFile
from mloc_dagster.spec.tree import MAX_BYTES, Mapping, Origin, merge, plain, read, size
from mloc_dagster.spec.typed import validate
from mloc_dagster.spec.workflow import WorkflowConfig

S = TypeVar("S", bound=Section)
MAX_STAGES = 500
MAX_MERGED = 200_000
"""So many values all stages may hold together after the merge over the base."""
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
    folder = base_of(text) or base or Path.cwd()
    tree, faults = read(text)
    if tree is not None and not isinstance(tree, Mapping):
        faults.append(Fault(1, 1, "", "a task file must be a map", shown(tree), "start with apiVersion: mloc/v1"))
    if not isinstance(tree, Mapping):
        raise SpecError([fault.in_file(file) for fault in faults])
    task = _Loader(text, folder, path, faults).load(tree, name)
    if faults or task is None:
        raise SpecError([fault.in_file(file) for fault in without_echoes(faults)])
    return TaskFile(**{**vars(task), "warnings": tuple(sorted({w.in_file(file) for w in task.warnings}))})


def with_base(text: str, base: Path) -> str:
    """Return the text with the folder that its relative paths start from written at its end."""
    return text if _BASE.search(text) else f"{text.rstrip()}\n\n# mloc:base={base}\n"


def base_of(text: str) -> Path | None:
    """Return the folder that a text says its relative paths start from, if it says so."""
    written = _BASE.findall(text)
    return Path(written[-1]) if written else None


def without_base(text: str) -> str:
    """Return a text as it was before `with_base`, but for blanks at its end."""
    return f"{_BASE.sub('', text).rstrip()}\n" if _BASE.search(text) else text


class _Loader:
    """One load; `faults` is shared with the caller."""

    def __init__(self, text: str, base: Path, path: Path | None, faults: list[Fault]) -> None:
        self.text, self.base, self.path, self.faults = text, base, path, faults
        self.bases: dict[str, Mapping] = {}

    def load(self, tree: Mapping, name: str) -> TaskFile | None:
        raw_metadata, spec, here = document.split(tree, self.faults)
        metadata = self._section(raw_metadata, document.Metadata, here)
        if spec is None:
            return None
        spec = spec.copy()
        workflow, workflow_tree = self._of_task(spec, "workflow_config", WorkflowConfig)
        schedule, schedule_tree = self._of_task(spec, "schedule", Schedule, short="cron")
        triggers, triggers_tree = self._of_task(spec, "triggers", Triggers)
        drafts = composition.drafts(spec, here, self.faults)
        requires = tuple(name for name, _ in composition.take_names(spec, "task", self.faults) or ())
        composition.check_order(drafts, self.faults)
        single = len(drafts) == 1 and not drafts[0].name
        annotations = raw_metadata.get("annotations")
        if self._too_large(spec, drafts):
            return None
        merged = [(draft, self._merge(spec, draft, annotations)) for draft in composition.in_order(drafts)]
        stages = [self._stage(draft, keys, single) for draft, keys in merged]
        ready = [stage for stage in stages if stage]
        places = {draft.name or self._single_name(keys): _place(draft, keys) for draft, keys in merged}
        trees = {draft.name or self._single_name(keys): keys for draft, keys in merged}
        self.faults.extend(islice(reference_checks.references(trees, drafts, requires), MOST_OF_A_KIND))
        for _, keys in merged:
            self.faults.extend(checks.pass_through(keys))
        for stage in ready:
            self.faults.extend(checks.stage(stage, trees[stage.name], places[stage.name]))
        self.faults.extend(evaluation_checks.gates(ready, trees))
        if workflow is not None:
            self.faults.extend(workflow_checks.faults(workflow, workflow_tree, list(trees)))
        own = metadata.name if metadata and metadata.name else _clean(name)
        times = {name: tree for name, tree in (("schedule", schedule_tree), ("triggers", triggers_tree)) if tree}
        self.faults.extend(schedule_checks.faults(schedule, triggers, times, own))
        if metadata is None or len(ready) < len(drafts) or self.faults:
            return None
        return TaskFile(
            name=own,
            owner=metadata.owner or "unknown",
            project=metadata.project,
            description=str(metadata.annotations.get("description") or ""),
            kind=str(tree.get("kind") or ""),
            stages=tuple(ready),
            workflow=workflow or WorkflowConfig(),
            schedule=schedule,
            triggers=triggers and _absolute(triggers, self.base),
            requires=requires,
            text=self.text,
            digest=hashlib.sha256(f"{self.base}\0{self.text}".encode()).hexdigest(),
            path=self.path,
            warnings=(
                *notices.unused(ready, trees),
                *notices.notices(ready, trees),
                *workflow_checks.warnings(workflow or WorkflowConfig(), workflow_tree),
                *schedule_checks.warnings(times),
            ),
        )

    def _section(self, tree: Mapping, section: type[S], here: Origin) -> S | None:
        canonical = drop_nulls(canonicalise(tree, section, self.faults), section)
        typed, _, faults = validate(canonical, section, here)
        self.faults.extend(faults)
        return typed

    def _of_task(self, spec: Mapping, key: str, section: type[S], short: str | None = None) -> tuple[S | None, Mapping]:
        """Take a section of the whole task out of its spec; a mere text there is its key `short`."""
        value, origin = spec.take(key) if key in spec else (None, None)
        if value is None or origin is None:
            return None, Mapping()
        if isinstance(value, str) and short:
            text, value = value, Mapping()
            value.put(short, text, Origin((*origin.path, short), origin.key, origin.value))
        if not isinstance(value, Mapping):
            way_out = "write a map: key: value lines, indented"
            self.faults.append(Fault(*origin.value, origin.text, "must be a map", shown(value), way_out))
            return None, Mapping()
        tree = drop_nulls(canonicalise(value, section, self.faults), section)
        typed, _, faults = validate(tree, section, origin)
        self.faults.extend(faults)
        return typed, tree

    def _too_large(self, spec: Mapping, drafts: list[Draft]) -> bool:
        base, total = size(spec), 0
        for count, draft in enumerate(drafts, start=1):
            total += base + size(draft.keys)
            if count > MAX_STAGES or total > MAX_MERGED:
                limit = (
                    f"{MAX_STAGES} stages" if count > MAX_STAGES else f"{MAX_MERGED} values in all its stages together"
                )
                what = f"the file has more than {limit}"
                self.faults.append(Fault(*draft.origin.key, draft.origin.text, what, "", "split it into several tasks"))
                return True
        return False

    def _base(self, spec: Mapping, task_type: str) -> Mapping:
        if task_type not in self.bases:
            rewritten = dialects.rewrite(spec, task_type, self.faults)
            self.bases[task_type] = canonicalise(rewritten, StageSpec, self.faults)
        return self.bases[task_type]

    def _merge(self, spec: Mapping, draft: Draft, annotations: Json) -> Mapping:
        own_type = draft.keys.get("taskType", draft.keys.get("task_type"))
        task_type = str(own_type or spec.get("taskType") or spec.get("task_type") or "")
        base = self._base(spec, task_type)
        own = canonicalise(dialects.rewrite(draft.keys, task_type, self.faults), StageSpec, self.faults)
        merged = drop_nulls(merge(base, own), StageSpec)
        if isinstance(annotations, Mapping) and annotations.get("sloSeconds") is not None and not _has_slo(merged):
            merged.put("slo_seconds", annotations["sloSeconds"], annotations.origins["sloSeconds"])
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
        spec = StageSpec.model_validate(_without(raw, deferred))
        return Stage(name, draft.depends_on, spec, raw, deferred, draft.origin.key[0])

    @staticmethod
    def _single_name(tree: Mapping) -> str:
        return re.sub(r"[^A-Za-z0-9_-]", "_", str(tree.get("task_type", "task")))


def _absolute(triggers: Triggers, base: Path) -> Triggers:
    """The same with a folder that does not depend on where somebody stands."""
    return triggers.model_copy(
        update={"inbox": str(base / Path(triggers.inbox).expanduser())} if triggers.inbox else {}
    )


def _place(draft: Draft, tree: Mapping) -> Origin:
    """The place to tell of what a stage lacks: its own taskType, or the stage itself."""
    origin = tree.origins.get("task_type", draft.origin)
    own = origin.path[: len(draft.origin.path)] == draft.origin.path
    return Origin(origin.path[:-1], origin.key, origin.value) if own and origin is not draft.origin else draft.origin


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100] or "task"


def _has_slo(tree: Mapping) -> bool:
    """Whether one of the keys that go before the annotation gives a positive service level."""
    sections = [tree.get(name) for name in ("slo", "latency", "runtime")]
    inner = [section.get("seconds") for section in sections if isinstance(section, Mapping)]
    return any(_positive(seconds) for seconds in (tree.get("slo_seconds"), *inner))


def _positive(value: Json) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError, OverflowError):
        return value is not None


def _without(raw: dict[str, Json], deferred: tuple[str, ...]) -> dict[str, Json]:
    """Return a copy of `raw` without the deferred keys."""
    copy = plain(raw)
    for dotted in deferred:
        inner = copy
        *parents, last = dotted.split(".")
        for part in parents:
            inner = inner[int(part)] if isinstance(inner, list) else inner.get(part, {})
        inner.pop(last, None)
    return copy


__all__ = ["base_of", "load_file", "load_text", "with_base", "without_base"]
