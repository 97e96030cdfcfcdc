"""Older and shorter spellings of a spec, rewritten into the one canonical shape."""

from __future__ import annotations

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import Fault, nearest, shown
from mloc_dagster.spec.tree import Mapping, Origin, Sequence

_JSONL_BESIDE = ("prompt_field", "response_field", "chosen_field", "rejected_field", "query_field")
_RAG_SECTIONS = ("rag_indexing", "rag_inference", "retrieval")
_RAG_TYPES = frozenset({"rag", *_RAG_SECTIONS})
_TRAINER_TYPES = frozenset({"sft", "lora_sft", "reward", "dpo", "ppo", "grpo"})

_HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
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
_SAMPLING = frozenset({"max_tokens", "max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "stop", "system_prompt"})


def rewrite(spec: Mapping, task_type: str, faults: list[Fault]) -> Mapping:
    """Return a copy of a `spec` (or of a stage's keys) in the canonical shape, places kept."""
    spec = spec.copy()
    _model_shorthand(spec)
    _gpu_shorthand(spec)
    _hyperparameters(spec, task_type, faults)
    _older_dataset(spec, task_type, faults)
    _data_shapes(spec)
    _rag_sections(spec)
    _agent_profile(spec)
    return spec


def nest(tree: Mapping, path: tuple[str, ...], value: Json, origin: Origin) -> bool:
    """Set `value` at `path`, making maps on the way; False when something else is there already."""
    for key in path[:-1]:
        inner = tree.get(key)
        if inner is None:
            inner = Mapping()
        elif not isinstance(inner, Mapping):
            return False
        inner = inner.copy()
        tree.put(key, inner, tree.origins.get(key, origin))
        tree = inner
    if path[-1] in tree:
        return False
    tree.put(path[-1], value, origin)
    return True


def _model_shorthand(spec: Mapping) -> None:
    model = spec.get("model")
    if isinstance(model, str):
        text, origin = spec.take("model")
        nest(spec, ("model", "source", "identifier"), text, origin)
    elif isinstance(model, Mapping) and isinstance(model.get("source"), str):
        model = model.copy()
        text, origin = model.take("source")
        nest(model, ("source", "identifier"), text, origin)
        spec.put("model", model, spec.origins["model"])
    reward = spec.get("reward_model")
    if isinstance(reward, str):
        text, origin = spec.take("reward_model")
        nest(spec, ("reward_model", "identifier"), text, origin)


def _gpu_shorthand(spec: Mapping) -> None:
    resources = spec.get("resources")
    hardware = resources.get("hardware") if isinstance(resources, Mapping) else None
    gpu = hardware.get("gpu") if isinstance(hardware, Mapping) else None
    if isinstance(resources, Mapping) and isinstance(hardware, Mapping) and isinstance(gpu, (int, str)) and not isinstance(gpu, bool):
        hardware = hardware.copy()
        value, origin = hardware.take("gpu")
        nest(hardware, ("gpu", "count" if isinstance(value, int) or value.isdigit() else "type"), value, origin)
        resources = resources.copy()
        resources.put("hardware", hardware, resources.origins["hardware"])
        spec.put("resources", resources, spec.origins["resources"])


def _hyperparameters(spec: Mapping, task_type: str, faults: list[Fault]) -> None:
    if "hyperparameters" not in spec:
        return
    values, origin = spec.take("hyperparameters")
    if values is None:
        return
    if not isinstance(values, Mapping):
        faults.append(Fault(*origin.value, origin.text, "must be a map", shown(values), "write hyperparameters as key: value lines"))
        return
    for key, value in values.items():
        place = values.origins[key]
        target = _hyperparameter_home(key, task_type)
        if not nest(spec, target, value, place):
            faults.append(Fault(*place.key, place.text, f"is also given at {'.'.join(target)}", shown(value), "keep one of them"))


def _hyperparameter_home(key: str, task_type: str) -> tuple[str, ...]:
    if key in _HYPERPARAMETERS:
        return _HYPERPARAMETERS[key]
    if key in _SAMPLING and task_type not in {"sft", "lora_sft"}:
        return ("generation" if task_type in {"ppo", "grpo"} else "inference", key)
    if task_type in {"agent", "agent_inference"} and key in {"timeout", "instructions"}:
        return ("agent", key)
    return ("training", key)


def _older_dataset(spec: Mapping, task_type: str, faults: list[Fault]) -> None:
    if "dataset" not in spec:
        return
    dataset, origin = spec.take("dataset")
    if dataset is None:
        return
    if isinstance(dataset, str):
        nest(spec, ("data", "dataset_name" if task_type in _TRAINER_TYPES else "url"), dataset, origin)
        return
    if not isinstance(dataset, Mapping):
        faults.append(Fault(*origin.value, origin.text, "must be a map", shown(dataset), "write dataset.source.identifier"))
        return
    for key, value in dataset.items():
        place = dataset.origins[key]
        if key == "source" and isinstance(value, Mapping):
            _older_source(spec, value, place, task_type, faults)
        elif key == "preprocessing" and isinstance(value, Mapping):
            _older_preprocessing(spec, value, faults)
        elif value is not None:
            guess = nearest(key, ["source", "preprocessing"])
            way_out = f"did you mean {guess}?" if guess and guess != key else "keys here: source{...}, preprocessing{...}"
            faults.append(Fault(*place.key, place.text, "is not a key of the task language", shown(value, 40), way_out))


def _older_source(spec: Mapping, source: Mapping, origin: Origin, task_type: str, faults: list[Fault]) -> None:
    if task_type in _RAG_TYPES:
        nest(spec, ("rag", "documents", "source"), source, origin)
        return
    kind = source.get("type", "huggingface")
    name_key = "dataset_name" if task_type in _TRAINER_TYPES else "url"
    hub = {"identifier": name_key, "split": "split", "revision": "revision", "config": "config_name", "name": "config_name"}
    files = {"path": "path", "bucket": "bucket", "identifier": "path"}
    if kind not in {"huggingface", "s3", "local"}:
        place = source.origins["type"]
        guess = nearest(str(kind), ["huggingface", "s3", "local"])
        way_out = f"did you mean {guess}?" if guess else "write huggingface, s3 or local"
        faults.append(Fault(*place.value, place.text, "is not a kind of data source", shown(kind), way_out))
        return
    for key, value in source.items():
        place = source.origins[key]
        if key == "type":
            if kind != "huggingface":
                nest(spec, ("data", "source", "type"), value, place)
        elif kind == "huggingface" and key in hub:
            nest(spec, ("data", hub[key]), value, place)
        elif kind != "huggingface" and key in files:
            nest(spec, ("data", "source", files[key]), value, place)
        elif key == "split":
            nest(spec, ("data", "split"), value, place)
        else:
            choices = ["type", "split", *(hub if kind == "huggingface" else files)]
            guess = nearest(key, choices)
            way_out = f"did you mean {guess}?" if guess and guess != key else f"keys here: {', '.join(choices)}"
            faults.append(Fault(*place.key, place.text, f"is not a key of a {kind} source", shown(value, 40), way_out))
    if task_type not in _TRAINER_TYPES and kind == "huggingface":
        nest(spec, ("data", "type"), "dataset", origin)


def _older_preprocessing(spec: Mapping, values: Mapping, faults: list[Fault]) -> None:
    homes = {
        "prompt_template": ("data", "prompt_template"),
        "max_seq_length": ("training", "max_seq_length"),
        "chunk_size": ("rag", "chunk_size"),
        "chunk_overlap": ("rag", "chunk_overlap"),
    }
    for key, value in values.items():
        place = values.origins[key]
        if key in homes:
            nest(spec, homes[key], value, place)
        else:
            guess = nearest(key, list(homes))
            way_out = f"did you mean {guess}?" if guess else f"keys here: {', '.join(homes)}"
            faults.append(Fault(*place.key, place.text, "is not a key of the task language", shown(value, 40), way_out))


def _data_shapes(spec: Mapping) -> None:
    data = spec.get("data")
    if isinstance(data, Sequence):
        value, origin = spec.take("data")
        data = Mapping()
        data.put("type", "list", origin)
        data.put("items", value, origin)
        spec.put("data", data, origin)
        return
    if not isinstance(data, Mapping):
        return
    data = data.copy()
    spec.put("data", data, spec.origins["data"])
    for holder in ("dataset", "list", "static", "graph_template"):
        inner = data.get(holder)
        if isinstance(inner, Mapping):
            _, origin = data.take(holder)
            for key, value in inner.items():
                nest(data, (key,), value, inner.origins[key])
            nest(data, ("type",), holder, origin)
    if "jsonl_path" in data:
        value, origin = data.take("jsonl_path")
        nest(data, ("jsonl", "path"), value, origin)
    if isinstance(data.get("jsonl"), str):
        value, origin = data.take("jsonl")
        nest(data, ("jsonl", "path"), value, origin)
    for key in _JSONL_BESIDE:
        if key in data and "jsonl" in data:
            value, origin = data.take(key)
            nest(data, ("jsonl", key), value, origin)
    if isinstance(data.get("template"), str):
        value, origin = data.take("template")
        nest(data, ("template", "text"), value, origin)


def _rag_sections(spec: Mapping) -> None:
    for name in _RAG_SECTIONS:
        if isinstance(spec.get(name), Mapping):
            section, _ = spec.take(name)
            for key, value in section.items():
                nest(spec, ("rag", key), value, section.origins[key])
    if isinstance(spec.get("qdrant"), Mapping):
        section, origin = spec.take("qdrant")
        nest(spec, ("rag", "vector_store", "type"), "qdrant", origin)
        for key, value in section.items():
            nest(spec, ("rag", "vector_store", key), value, section.origins[key])
    rag = spec.get("rag")
    if isinstance(rag, Mapping):
        rag = rag.copy()
        spec.put("rag", rag, spec.origins["rag"])
        moves = {"embedding_model": ("embedding", "model"), "top_k": ("search", "top_k"), "retrieval_k": ("search", "top_k"),
                 "similarity_threshold": ("search", "similarity_threshold"), "vector_db": ("vector_store", "type")}
        for key, target in moves.items():
            if key in rag:
                value, origin = rag.take(key)
                nest(rag, target, value, origin)
        if isinstance(rag.get("embedding"), str):
            value, origin = rag.take("embedding")
            nest(rag, ("embedding", "model"), value, origin)


def _agent_profile(spec: Mapping) -> None:
    for name in ("configName", "config_name"):
        if name in spec:
            value, origin = spec.take(name)
            nest(spec, ("agent", "config_name"), value, origin)
    if isinstance(spec.get("agent_inference"), Mapping):
        section, _ = spec.take("agent_inference")
        for key, value in section.items():
            nest(spec, ("agent", key), value, section.origins[key])
