"""Checks of `spec.rag`: passages overlap less than they hold, nothing that is needed is missing, no key is idle."""

from __future__ import annotations

from collections.abc import Iterator

from mloc_dagster.spec.dialects import RAG_TYPES
from mloc_dagster.spec.faults import Fault
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.spec.tree import Mapping, Origin, path_text
from mloc_dagster.spec.typed import origin_at


def rag(stage: Stage, tree: Mapping, here: Origin) -> Iterator[Fault]:
    """Faults of the section; `here` is the place of the whole stage."""
    section = stage.spec.rag
    if section.chunk_overlap >= section.chunk_size:
        place = _at(tree, "rag", "chunk_overlap") or _at(tree, "rag", "chunk_size")
        if place:
            what, text = (
                f"must be smaller than chunk_size {section.chunk_size}",
                path_text((*place.path[:-1], "chunk_overlap")),
            )
            yield Fault(*place.value, text, what, str(section.chunk_overlap), "write a smaller overlap")
    if stage.spec.task_type in RAG_TYPES:
        yield from _needs(stage, here)
        yield from _sources(stage, tree)
        yield from _server(stage, tree)
        yield from _bounds(stage, tree)


def _at(tree: Mapping, *path: str | int) -> Origin | None:
    return origin_at(tree, path)


def _needs(stage: Stage, here: Origin) -> Iterator[Fault]:
    section, kind = stage.spec.rag, stage.spec.task_type
    if section.embedding is None and not stage.is_deferred("rag.embedding"):
        what = f"is missing, and taskType {kind} needs a model that turns texts into vectors"
        text = path_text((*here.path, "rag", "embedding"))
        yield Fault(*here.key, text, what, "", "add rag.embedding: {model: <org>/<name>}")
    if section.documents is not None or stage.is_deferred("rag.documents"):
        return
    if kind == "rag_indexing":
        what, way_out = "is missing, and taskType rag_indexing needs documents", "add rag.documents.source"
        yield Fault(*here.key, path_text((*here.path, "rag", "documents")), what, "", way_out)
    elif section.vector_store.path is None and not stage.is_deferred("rag.vector_store.path"):
        what = f"is missing, and taskType {kind} needs an index"
        way_out = "write ${<stage>.result.index_path} of a rag_indexing stage, or add rag.documents"
        yield Fault(*here.key, path_text((*here.path, "rag", "vector_store", "path")), what, "", way_out)


def _sources(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    documents = stage.spec.rag.documents
    for index, source in enumerate(documents.sources() if documents else []):
        path = ("rag", "documents", "source", *([index] if isinstance(documents and documents.source, list) else []))
        named = source.type == "python_topics" or source.data() is not None
        place = _at(tree, *path)
        if not named and place and not stage.is_deferred(".".join(map(str, path))):
            yield Fault(*place.value, place.text, "names no documents", "", "add path, url or identifier")


def _server(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    """Address and key are those of a Qdrant server, and a key needs an address, or an index that names one."""
    store = stage.spec.rag.vector_store
    written = {key: _at(tree, "rag", "vector_store", key) for key in ("url", "api_key", "path")}
    places = {key: place for key, place in written.items() if place and place.path[-1] == key}
    for key in ("url", "api_key"):
        place = places.get(key)
        if place and store.type != "qdrant" and not stage.is_deferred("rag.vector_store.type"):
            way_out = "write type: qdrant, or leave it out"
            yield Fault(*place.key, place.text, f"is read by type qdrant alone, not by {store.type}", "", way_out)
    key = places.get("api_key")
    if key and store.type == "qdrant" and "url" not in places and "path" not in places:
        yield Fault(
            *key.key, key.text, "is the key of a server, and there is no url", "", "add url: http://<host>:6333"
        )


def _bounds(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    section = stage.spec.rag
    if section.expected_field is not None or stage.is_deferred("rag.expected_field"):
        return
    for name in ("min_hit_rate", "min_mrr"):
        place = _at(tree, "rag", name)
        if place and place.path[-1] == name:
            what = "has nothing to measure: no field names the right document of a query"
            way_out = "add rag.expected_field: <a field of the metadata of the queries>"
            yield Fault(*place.key, place.text, what, "", way_out)
