"""Relative paths in a task file start from the file's own folder."""

from __future__ import annotations

import re
from pathlib import Path

from mloc_dagster.spec import agent_profiles
from mloc_dagster.spec.base import Json

_FILE = re.compile(r"\.(jsonl|json|csv|parquet|txt|ndjson)(\.gz)?$", re.IGNORECASE)
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PATH_KEYS = (
    ("data", "jsonl", "path"),
    ("checkpoint", "load", "path"),
    ("training", "resume_from_path"),
)


def make_absolute(raw: dict[str, Json], base: Path) -> None:
    """Rewrite the relative local paths of a canonical stage, in place, against the folder `base`."""
    for keys in _PATH_KEYS:
        _set(raw, keys, base)
    data = raw.get("data") or {}
    if isinstance(data, dict):
        if isinstance(data.get("url"), str) and looks_local(data["url"]):
            data["url"] = _absolute(data["url"], base)
        source = data.get("source")
        if isinstance(source, dict) and source.get("type") == "local":
            _set(source, ("path",), base)
        for kind in ("queries", "contexts", "initial_answers"):
            _set(data, ("input_sources", kind, "file_path"), base)
    for section, key in ((data, "dataset_name"), (raw.get("reward_model"), "identifier")):
        if isinstance(section, dict) and str(section.get(key)).startswith(("./", "../", "~/")):  # else a hub's name
            section[key] = _absolute(section[key], base)
    _rag(raw.get("rag"), base)
    _profile(raw.get("agent"), base)
    model = raw.get("model")
    if isinstance(model, dict):
        source = model.get("source")
        if isinstance(source, dict) and source.get("type") == "local":
            _set(source, ("identifier",), base)
        for adapter in model.get("adapters") or []:
            if isinstance(adapter, dict):
                _set(adapter, ("path",), base)


def _rag(rag: Json, base: Path) -> None:
    """Documents, an index that is only read, and a model's folder; where an index is made, its path is a name."""
    if not isinstance(rag, dict):
        return
    documents = rag.get("documents")
    source = documents.get("source") if isinstance(documents, dict) else None
    for one in source if isinstance(source, list) else [source]:
        if isinstance(one, dict) and not one.get("bucket"):
            _set(one, ("path",), base)
    if not documents:
        _set(rag, ("vector_store", "path"), base)
    search = rag.get("search")
    for model in (rag.get("embedding"), search.get("rerank_model") if isinstance(search, dict) else None):
        if isinstance(model, dict) and str(model.get("model")).startswith(("./", "../", "~/")):
            _set(model, ("model",), base)


def _profile(agent: Json, base: Path) -> None:
    """An agent profile of the folder beside the file goes before a shipped one of the same name."""
    name = agent.get("config_name") if isinstance(agent, dict) else None
    path = agent_profiles.in_workspace(name, base) if isinstance(name, str) else None
    if path is not None:
        agent["config_name"] = str(path.resolve())


def looks_local(text: str) -> bool:
    """Whether a data URL names a local file: a path, or a file name without a scheme."""
    if _SCHEME.match(text):
        return False
    return text.startswith((".", "/", "~")) or bool(_FILE.search(text))


def _set(tree: Json, keys: tuple[str, ...], base: Path) -> None:
    for key in keys[:-1]:
        tree = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(tree, dict) and isinstance(tree.get(keys[-1]), str):
        tree[keys[-1]] = _absolute(tree[keys[-1]], base)


def _absolute(text: str, base: Path) -> str:
    if not text or text.startswith("${") or _SCHEME.match(text) or "\0" in text:
        return text
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    return str(path if path.is_absolute() else (base / path).resolve())
