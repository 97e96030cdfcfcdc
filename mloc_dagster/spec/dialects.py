"""Older and shorter spellings of a spec, rewritten into the one canonical shape."""

from __future__ import annotations

from collections.abc import Iterable

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.canonical import spellings
from mloc_dagster.spec.faults import Fault, nearest, shown
from mloc_dagster.spec.inference import Inference
from mloc_dagster.spec.references import whole
from mloc_dagster.spec.training import Generation, Training
from mloc_dagster.spec.tree import Mapping, Origin, Sequence

RAG_SECTIONS = ("rag_indexing", "rag_inference", "retrieval")
RAG_TYPES = frozenset({"rag", *RAG_SECTIONS})
AGENT_TYPES = frozenset({"agent", "agent_inference"})
TRAINER_TYPES = frozenset({"sft", "lora_sft", "reward", "dpo", "ppo", "grpo"})
DATA_HOLDERS = ("dataset", "list", "static", "graph_template")
PROFILE_KEYS = ("configName", "config_name")

HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "reward_model": ("reward_model", "identifier"),
    "embedding_model": ("rag", "embedding", "model"),
    "vector_db": ("rag", "vector_store", "type"),
    "vector_db_path": ("rag", "vector_store", "path"),
    "retrieval_k": ("rag", "search", "top_k"),
    "chunk_size": ("rag", "chunk_size"),
    "chunk_overlap": ("rag", "chunk_overlap"),
    "agent_type": ("agent", "type"),
    "tools": ("agent", "tools"),
    "max_iterations": ("agent", "max_iterations"),
    "port": ("serve", "port"),
}
"""Where each key of `hyperparameters` belongs that is no trainer or sampling argument."""

PREPROCESSING: dict[str, tuple[str, ...]] = {
    "prompt_template": ("data", "prompt_template"),
    "max_seq_length": ("training", "max_seq_length"),
    "chunk_size": ("rag", "chunk_size"),
    "chunk_overlap": ("rag", "chunk_overlap"),
}
"""Where each key of `dataset.preprocessing` belongs."""

RAG_MOVES: dict[str, tuple[str, ...]] = {
    "embedding_model": ("embedding", "model"),
    "top_k": ("search", "top_k"),
    "retrieval_k": ("search", "top_k"),
    "similarity_threshold": ("search", "similarity_threshold"),
    "vector_db": ("vector_store", "type"),
    "vector_db_path": ("vector_store", "path"),
}
"""Where each flat key of a rag section belongs inside `rag`."""

_JSONL_BESIDE = (
    "prompt_field",
    "response_field",
    "chosen_field",
    "rejected_field",
    "query_field",
    "headers",
    "timeoutSec",
    "timeout_sec",
)
_JSONL_FLAT = (*_JSONL_BESIDE, "path", "uri", "worker_path", "taskId", "task_id", "url", "download_url", "text_field")
_HUB_SOURCE = {
    "identifier": "dataset_name",
    "split": "split",
    "revision": "revision",
    "config": "config_name",
    "name": "config_name",
}
_FILE_SOURCE = {"path": "path", "bucket": "bucket", "identifier": "path"}


def rewrite(spec: Mapping, task_type: str, faults: list[Fault]) -> Mapping:
    """Return a copy of a `spec` (or of a stage's keys) in the canonical shape, places kept.

    Something that two spellings say at once becomes a fault.
    """
    spec = spec.copy()
    _shorthand(spec, ("model",), ("model", "source", "identifier"), faults)
    _shorthand(spec, ("model", "source"), ("model", "source", "identifier"), faults)
    _shorthand(spec, ("reward_model",), ("reward_model", "identifier"), faults)
    _gpu_shorthand(spec, faults)
    _hyperparameters(spec, task_type, faults)
    _older_dataset(spec, task_type, faults)
    _data_shapes(spec, faults)
    _rag_sections(spec, faults)
    _agent_profile(spec, faults)
    _shorthand(spec, ("agent", "model"), ("model", "source", "identifier"), faults)
    return spec


def place(tree: Mapping, path: tuple[str, ...], value: Json, origin: Origin, faults: list[Fault]) -> None:
    """Set `value` at `path`, making maps on the way.

    Another value that is there already is a fault; two maps are merged.
    """
    for key in path[:-1]:
        inner = tree.get(key)
        if inner is None:
            tree.put(key, Mapping(), origin)
        elif isinstance(inner, Mapping):
            tree.put(key, inner.copy(), tree.origins[key])
        else:
            faults.append(_twice(tree.origins[key], value, origin))
            return
        tree = tree[key]
    old = tree.get(path[-1])
    if old is None or old == value:
        tree.put(path[-1], value, origin)
    elif isinstance(old, Mapping) and isinstance(value, Mapping):
        for key, item in value.items():
            place(tree, (path[-1], key), item, value.origins[key], faults)
    else:
        faults.append(_twice(tree.origins[path[-1]], value, origin))


def _twice(first: Origin, value: Json, origin: Origin) -> Fault:
    what = f"means the same as {first.text} on line {first.key[0]}"
    return Fault(*origin.key, origin.text, what, shown(value, 40), "keep one of them")


def _unknown(key: str, holder: Mapping, choices: Iterable[str], what: str = "the task language") -> Fault:
    choices = list(choices)
    where = holder.origins[key]
    guess = nearest(key, choices)
    way_out = f"did you mean {guess}?" if guess and guess != key else f"keys here: {', '.join(choices)}"
    return Fault(*where.key, where.text, f"is not a key of {what}", shown(holder[key], 40), way_out)


def _shorthand(spec: Mapping, path: tuple[str, ...], target: tuple[str, ...], faults: list[Fault]) -> None:
    """Rewrite a text where a map belongs: it is what `target` names."""
    *parents, last = path
    holder: Json = spec
    for key in parents:
        if isinstance(holder.get(key), Mapping):
            holder.put(key, holder[key].copy(), holder.origins[key])
        holder = holder.get(key)
        if not isinstance(holder, Mapping):
            return
    if isinstance(holder.get(last), str):
        text, origin = holder.take(last)
        place(spec, target, text, origin, faults)


def _gpu_shorthand(spec: Mapping, faults: list[Fault]) -> None:
    resources = spec.get("resources")
    hardware = resources.get("hardware") if isinstance(resources, Mapping) else None
    gpu = hardware.get("gpu") if isinstance(hardware, Mapping) else None
    if not (isinstance(resources, Mapping) and isinstance(hardware, Mapping) and isinstance(gpu, (int, str))):
        return
    if isinstance(gpu, bool):
        return
    resources, hardware = resources.copy(), hardware.copy()
    spec.put("resources", resources, spec.origins["resources"])
    resources.put("hardware", hardware, resources.origins["hardware"])
    value, origin = hardware.take("gpu")
    is_count = isinstance(value, int) or value.isdigit()
    place(hardware, ("gpu", "count" if is_count else "type"), value, origin, faults)


def _hyperparameters(spec: Mapping, task_type: str, faults: list[Fault]) -> None:
    values = _taken_map(spec, "hyperparameters", faults)
    for key, value in values.items():
        place(spec, _hyperparameter_home(key, task_type), value, values.origins[key], faults)


def _hyperparameter_home(key: str, task_type: str) -> tuple[str, ...]:
    if key in HYPERPARAMETERS:
        return HYPERPARAMETERS[key]
    if task_type in AGENT_TYPES and key in {"timeout", "instructions"}:
        return ("agent", key)
    if task_type not in TRAINER_TYPES and key in spellings(Inference):
        return ("inference", key)
    if task_type in {"ppo", "grpo"} and key in spellings(Generation) and key not in spellings(Training):
        return ("generation", key)
    return ("training", key)


def _taken_map(spec: Mapping, key: str, faults: list[Fault]) -> Mapping:
    """Take a section out of `spec`; empty when it isn't there, is null, or (a fault) is no map."""
    if key not in spec:
        return Mapping()
    value, origin = spec.take(key)
    if isinstance(value, Mapping):
        return value
    if value is not None:
        way_out = "write a map: key: value lines, indented"
        faults.append(Fault(*origin.value, origin.text, "must be a map", shown(value), way_out))
    return Mapping()


def _older_dataset(spec: Mapping, task_type: str, faults: list[Fault]) -> None:
    if isinstance(spec.get("dataset"), str):
        name, origin = spec.take("dataset")
        place(spec, ("data", "dataset_name" if task_type in TRAINER_TYPES else "url"), name, origin, faults)
        return
    dataset = _taken_map(spec, "dataset", faults)
    for key, value in dataset.items():
        origin = dataset.origins[key]
        if key == "source" and isinstance(value, Mapping):
            _older_source(spec, value, origin, task_type, faults)
        elif key == "preprocessing" and isinstance(value, Mapping):
            for name, item in value.items():
                if name in PREPROCESSING:
                    place(spec, PREPROCESSING[name], item, value.origins[name], faults)
                else:
                    faults.append(_unknown(name, value, PREPROCESSING))
        elif key in {"source", "preprocessing"} and value is not None:
            way_out = "write a map: key: value lines, indented"
            faults.append(Fault(*origin.value, origin.text, "must be a map", shown(value), way_out))
        elif value is not None:
            faults.append(_unknown(key, dataset, ["source", "preprocessing"]))


def _older_source(spec: Mapping, source: Mapping, origin: Origin, task_type: str, faults: list[Fault]) -> None:
    if task_type in RAG_TYPES:
        place(spec, ("rag", "documents", "source"), source, origin, faults)
        return
    kind = source.get("type") or "huggingface"
    kinds = ["huggingface", "s3", "local"]
    if kind not in kinds:
        where = source.origins["type"]
        guess = nearest(str(kind), kinds)
        way_out = f"did you mean {guess}?" if guess else "write huggingface, s3 or local"
        faults.append(Fault(*where.value, where.text, "is not a kind of data source", shown(kind), way_out))
        return
    homes = _source_homes(kind, task_type)
    for key, value in source.items():
        if key in homes:
            place(spec, homes[key], value, source.origins[key], faults)
        elif key != "type":
            faults.append(_unknown(key, source, ["type", *homes], f"a {kind} source"))
    if kind != "huggingface":
        place(spec, ("data", "source", "type"), kind, source.origins["type"], faults)
    elif task_type not in TRAINER_TYPES:
        place(spec, ("data", "type"), "dataset", origin, faults)


def _source_homes(kind: str, task_type: str) -> dict[str, tuple[str, ...]]:
    if kind != "huggingface":
        return {key: ("data", "source", name) for key, name in _FILE_SOURCE.items()} | {"split": ("data", "split")}
    homes = {key: ("data", name) for key, name in _HUB_SOURCE.items()}
    return homes if task_type in TRAINER_TYPES else homes | {"identifier": ("data", "url")}


def _data_shapes(spec: Mapping, faults: list[Fault]) -> None:
    if isinstance(spec.get("data"), Sequence):
        items, origin = spec.take("data")
        place(spec, ("data", "items"), items, origin, faults)
        place(spec, ("data", "type"), "list", origin, faults)
    data = spec.get("data")
    if not isinstance(data, Mapping):
        return
    data = data.copy()
    spec.put("data", data, spec.origins["data"])
    for holder in DATA_HOLDERS:
        if isinstance(data.get(holder), Mapping):
            inner, origin = data.take(holder)
            if data.get("type") != holder:
                place(data, ("type",), holder, origin, faults)
            for key, value in inner.items():
                place(data, (key,), value, inner.origins[key], faults)
    if data.get("type") == "list" and "items" not in data and "prompts" in data:
        data.put("items", *data.take("prompts"))
    _jsonl_shapes(data, faults)
    _shorthand(data, ("template",), ("template", "text"), faults)
    _bare_names(data)


def _bare_names(data: Mapping) -> None:
    """Write `expr` and `stage_output` without `${}`: they name a result of any type, not its text."""
    template, sources = data.get("template"), data.get("input_sources")
    columns = template.get("columns") if isinstance(template, Mapping) else None
    if isinstance(template, Mapping) and isinstance(columns, Sequence):
        bare = Sequence()
        bare.origins = columns.origins
        bare.extend(_bare(column, "expr") for column in columns)
        template = template.copy()
        template.put("columns", bare, template.origins["columns"])
        data.put("template", template, data.origins["template"])
    if isinstance(sources, Mapping):
        twin = Mapping()
        for name, source in sources.items():
            twin.put(name, _bare(source, "stage_output"), sources.origins[name])
        data.put("input_sources", twin, data.origins["input_sources"])


def _bare(holder: Json, key: str) -> Json:
    body = whole(holder.get(key)) if isinstance(holder, Mapping) else None
    if body is None or "." not in body:
        return holder
    holder = holder.copy()
    holder.put(key, body.strip(), holder.origins[key])
    return holder


def _jsonl_shapes(data: Mapping, faults: list[Fault]) -> None:
    _shorthand(data, ("jsonl",), ("jsonl", "path"), faults)
    if "jsonl_path" in data:
        value, origin = data.take("jsonl_path")
        place(data, ("jsonl", "path"), value, origin, faults)
    flat = data.get("type") == "jsonl" and "jsonl" not in data
    beside = _JSONL_FLAT if flat else _JSONL_BESIDE if "jsonl" in data else ()
    for key in beside:
        if key in data:
            value, origin = data.take(key)
            place(data, ("jsonl", key), value, origin, faults)


def _rag_sections(spec: Mapping, faults: list[Fault]) -> None:
    for name in RAG_SECTIONS:
        section = _rag_shape(_taken_map(spec, name, faults), faults)
        for key, value in section.items():
            place(spec, ("rag", key), value, section.origins[key], faults)
    if isinstance(spec.get("rag"), Mapping):
        spec.put("rag", _rag_shape(spec["rag"], faults), spec.origins["rag"])
    qdrant = _taken_map(spec, "qdrant", faults)
    for key, value in qdrant.items():
        place(spec, ("rag", "vector_store", key), value, qdrant.origins[key], faults)
    for origin in list(qdrant.origins.values())[:1] if "type" not in qdrant else ():
        place(spec, ("rag", "vector_store", "type"), "qdrant", origin, faults)


def _rag_shape(section: Mapping, faults: list[Fault]) -> Mapping:
    section = section.copy()
    for key, target in RAG_MOVES.items():
        if key in section:
            value, origin = section.take(key)
            place(section, target, value, origin, faults)
    _shorthand(section, ("embedding",), ("embedding", "model"), faults)
    for search in ("search", "parameters"):
        _shorthand(section, (search, "rerank_model"), (search, "rerank_model", "model"), faults)
    return section


def _agent_profile(spec: Mapping, faults: list[Fault]) -> None:
    for name in PROFILE_KEYS:
        if name in spec:
            value, origin = spec.take(name)
            place(spec, ("agent", "config_name"), value, origin, faults)
    section = _taken_map(spec, "agent_inference", faults)
    for key, value in section.items():
        place(spec, ("agent", key), value, section.origins[key], faults)
