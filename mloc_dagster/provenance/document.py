"""The document: a CycloneDX 1.6 ML-BOM. Of one stage's result it is always the same but for serial number and time.

The model is the subject, its files lie below it with their hashes; what it was made of and with are components beside
it, on which it depends. There is nothing in it of this machine's folders, and nothing that `${NAME}` stands for.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mloc_dagster import __version__
from mloc_dagster.provenance.card import hub_card
from mloc_dagster.provenance.names import CARD, FOLDER, ON_HUBS, WEIGHTS, files_of
from mloc_dagster.provenance.repository import Commit
from mloc_dagster.sources.pulled import shown
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.taskfile import Stage, TaskFile
from mloc_dagster.store.digests import Digests
from mloc_dagster.store.results import Envelope

Component = dict[str, Json]
_MODEL = "model"
_APPROACH = {"grpo": "reinforcement-learning", "ppo": "reinforcement-learning"}
_OF_TIME = frozenset({"training_time_seconds", "tokens_per_second"})
"""Metrics that differ from run to run."""
_SECTIONS = ("training", "lora", "generation")
_OF_PLACES = frozenset({"output_dir", "resume_from_path"})
_WEIGHTS_INPUTS = ("model", "reward_model", "checkpoint.", "training.resume_from_path", "reward_model.")
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/mloc-dagster/provenance")


@dataclass(frozen=True)
class Published:
    """Weights that are published: the run folder, where they lie in it, and what is known of them."""

    task: TaskFile
    stage: Stage
    envelope: Envelope
    folder: Path
    weights: Path
    spec_sha256: str
    commit: Commit | None


def document_of(of: Published, digests: Digests) -> dict[str, Json]:
    """Return the document, not signed yet."""
    parts = [*_inputs(of), *_packages(of), *_devices(of), _task_file(of)]
    serial = uuid.uuid5(_NAMESPACE, f"{of.envelope.task_id} {of.envelope.metadata.get('weights_digest')}")
    tools: Json = {"components": [{"type": "application", "name": "mloc-dagster", "version": __version__}]}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromisoformat(of.envelope.received_at).isoformat(),
            "lifecycles": [{"phase": "build"}],
            "tools": tools,
            "component": _model(of, digests),
        },
        "components": parts,
        "dependencies": [{"ref": _MODEL, "dependsOn": sorted(part["bom-ref"] for part in parts)}],
    }


def _model(of: Published, digests: Digests) -> Component:
    metadata, stage = of.envelope.metadata, of.stage
    name = f"{of.task.name}/{stage.name}"
    properties = {
        WEIGHTS: metadata.get("weights_digest"),
        FOLDER: of.weights.name,
        "mloc:owner": of.task.owner,
        "mloc:project": of.task.project,
        "mloc:task_type": stage.spec.task_type,
        "mloc:stage:digest": metadata.get("digest"),
        "mloc:spec:sha256": of.spec_sha256,
        "mloc:git:commit": of.commit.id if of.commit else None,
        "mloc:git:path": of.commit.path if of.commit else None,
        "mloc:git:modified": of.commit.path is None if of.commit else None,
        "mloc:seed": stage.spec.training.seed,
        "mloc:data:seed": stage.spec.data.seed if stage.spec.data.shuffle else None,
        "mloc:data:rows_digest": metadata.get("data_digest"),
        "mloc:world_size": metadata.get("world_size"),
        "mloc:software": None if "software" in metadata else "not told by the stage",
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": name,
        "version": str(metadata.get("weights_digest")).removeprefix("sha256:")[:16],
        "modelCard": _card(of),
        "properties": _properties(properties) + list(_settings(stage)),
        "components": [_file(path, of.folder, digests) for path in _all_files(of)],
    }


def _all_files(of: Published) -> Iterator[Path]:
    yield from files_of(of.weights)
    archive = of.folder / "artifacts" / f"{of.weights.name}.tar.gz"
    if archive.is_file():
        yield archive


def _file(path: Path, folder: Path, digests: Digests) -> Component:
    name = path.relative_to(folder).as_posix()
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": _hash(digests.of(path)),
        "properties": _properties({"mloc:bytes": path.stat().st_size, ON_HUBS: _on_hubs(path)}),
    }


def _on_hubs(path: Path) -> str | None:
    """The SHA-256 hex of a model card as hubs get it, when that is another one."""
    if path.name != CARD:
        return None
    now = hub_card(path)
    return None if now == path.read_bytes() else hashlib.sha256(now).hexdigest()


def _card(of: Published) -> dict[str, Json]:
    parameters: dict[str, Json] = {
        "approach": {"type": _APPROACH.get(of.stage.spec.task_type, "supervised")},
        "task": of.stage.spec.task_type,
        "datasets": [{"ref": part["bom-ref"]} for part in _inputs(of) if part["type"] == "data"],
    }
    architecture = _architecture(of.weights)
    if architecture:
        parameters["modelArchitecture"] = architecture
    metrics = of.envelope.metadata.get("metrics") or {}
    told = [
        {"type": name, "value": repr(value)}
        for name, value in sorted(metrics.items())
        if name not in _OF_TIME and isinstance(value, (int, float)) and math.isfinite(value)
    ]
    return {"modelParameters": parameters, "quantitativeAnalysis": {"performanceMetrics": told}}


def _architecture(weights: Path) -> str | None:
    try:
        config = json.loads((weights / "config.json").read_text("utf-8"))
        return str(config["architectures"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _settings(stage: Stage) -> Iterator[dict[str, Json]]:
    for section in _SECTIONS:
        for key, value in sorted((stage.raw.get(section) or {}).items()):
            if key not in _OF_PLACES:
                text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
                yield {"name": f"mloc:{section}:{key}", "value": text}


def _inputs(of: Published) -> list[Component]:
    """Everything with a digest that the stage has read: models, data, results of other stages."""
    metadata, spec = of.envelope.metadata, of.stage.spec
    found = dict(sorted((metadata.get("inputs") or {}).items()))
    source, data = spec.model.source, spec.data
    names = {
        "model": source.identifier if source else None,
        "reward_model": spec.reward_model.identifier if spec.reward_model else None,
        "data": data.dataset_name or data.url or (data.source.path if data.source else None),
        "data.jsonl.path": data.jsonl.path if data.jsonl else None,
    }
    more = {
        "model": {
            "mloc:source": source.type if source else None,
            "mloc:revision": source.revision if source else None,
            WEIGHTS: metadata.get("start_weights_digest"),
        },
        "data": {"mloc:split": data.split, "mloc:revision": data.revision},
    }
    made = [_input(key, digest, names.get(key), more.get(key, {})) for key, digest in found.items()]
    if not any(part["type"] == "data" for part in made):
        made.append(_rows(of))
    return made


def _input(key: str, digest: str, name: str | None, more: Mapping[str, Json]) -> Component:
    weights = key.startswith(_WEIGHTS_INPUTS)
    kind = "machine-learning-model" if weights else "application" if key.startswith("stage:") else "data"
    return {
        "type": kind,
        "bom-ref": f"input:{key}",
        "name": _plain_name(name) if name else key,
        **({"data": [{"type": "dataset"}]} if kind == "data" else {}),
        "properties": _properties({"mloc:input": key, "mloc:digest": digest, **more}),
    }


def _rows(of: Published) -> Component:
    """Rows that stand in the task file, or come from an address or from another stage."""
    jsonl = of.stage.spec.data.jsonl
    address = jsonl.url if jsonl else None
    return {
        "type": "data",
        "bom-ref": "input:rows",
        "name": _plain_name(address) if address else "rows",
        "data": [{"type": "dataset"}],
        "properties": _properties({"mloc:input": "rows", "mloc:digest": of.envelope.metadata.get("data_digest")}),
    }


def _packages(of: Published) -> Iterator[Component]:
    told = of.envelope.metadata.get("software") or {}
    for name, version in sorted((told.get("packages") or {}).items()):
        yield {
            "type": "library",
            "bom-ref": f"pkg:{name}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
        }
    if "python" in told:
        yield {"type": "platform", "bom-ref": "platform:python", "name": "python", "version": told["python"],
               "properties": _properties({"mloc:platform": told.get("platform")})}  # fmt: skip


def _devices(of: Published) -> Iterator[Component]:
    names: list[str] = of.envelope.metadata.get("device_names") or []
    granted = of.envelope.metadata.get("devices") or ["cpu"]
    kind = "cpu" if granted == ["cpu"] else "gpu"
    for number, name in enumerate(names or [kind]):
        yield {"type": "device", "bom-ref": f"device:{number}", "name": name,
               "properties": _properties({"mloc:kind": kind})}  # fmt: skip


def _task_file(of: Published) -> Component:
    commit = of.commit
    made: Component = {
        "type": "file",
        "bom-ref": "task",
        "name": (commit.path if commit else None) or f"{of.task.name}.yaml",
        "hashes": _hash(of.spec_sha256),
    }
    return made | {"pedigree": {"commits": [{"uid": commit.id}]}} if commit else made


def _plain_name(name: str) -> str:
    """A name without login or query; of a path of this machine only its end."""
    name = shown(name)
    local = name.startswith(("/", "./", "../", "~", "file://"))
    return Path(name).name if local else name


def _hash(digest: str) -> list[dict[str, Json]]:
    return [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]


def _properties(values: Mapping[str, Json]) -> list[dict[str, Json]]:
    """Properties are texts; what is not known is left out."""
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()
             if value is not None}  # fmt: skip
    return [{"name": name, "value": text} for name, text in sorted(texts.items())]
