"""Qdrant: files of the index by the client's local mode, or a server.

On a server each index is a collection of its own, named by its content; the alias `rag.vector_store.collection` leads
to the newest one. `<folder>/server.json` says which collection of which server belongs to an index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from executors.base import ExecutorError
from mloc_dagster.files.atomic import write_text

if TYPE_CHECKING:
    import numpy

_SERVER = "server.json"
_POINTS_AT_ONCE, _QUERIES_AT_ONCE = 256, 64
_SECONDS = 60


class OnServer(BaseModel):
    """Where the vectors of an index are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    collection: str


class QdrantStore:
    """One collection with cosine distance; the id of a point is its position, its payload the text."""

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        """A server at `url`; without one, files. An index that lies on a server is opened there in any case.

        Raises ExecutorError when qdrant-client is not installed.
        """
        self._url, self._api_key, self._client = url, api_key, _client()

    def write(self, folder: Path, collection: str, vectors: numpy.ndarray, texts: Sequence[str]) -> None:
        """Write all vectors: into files, or into a new collection of the server that then takes over the alias."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._url is None:
            with closing(self._local(folder)) as client:
                _fill(client, collection, vectors, texts)
            return
        name = f"{collection}-{_content(vectors, texts)}"
        with closing(self._remote(self._url)) as client, _told(self._url):
            _fill(client, name, vectors, texts)
            _check(client, name, vectors)
            _switch(client, collection, name)
        write_text(folder / _SERVER, OnServer(url=self._url, collection=name).model_dump_json() + "\n")

    def open(self, folder: Path, collection: str) -> OpenQdrant:
        """Open the collection; raises ExecutorError when it is gone or the server does not answer."""
        if not (folder / _SERVER).is_file():
            return _opened(self._local(folder), collection, str(folder), "Index the documents again.")
        place = OnServer.model_validate_json((folder / _SERVER).read_text("utf-8"))
        url = self._url or place.url
        client = self._remote(url)
        hint = f"A newer index may have taken over {collection!r}: run the stage that makes this index with --fresh."
        return _opened(client, place.collection, url, hint)

    def _local(self, folder: Path) -> Any:
        return self._client(path=str(folder))

    def _remote(self, url: str) -> Any:
        try:
            return self._client(url=url, api_key=self._api_key, timeout=_SECONDS, check_compatibility=False)
        except ValueError as error:
            what = f"rag.vector_store.url {url!r} is no address: {error}."
            raise ExecutorError(what, "Write http://host:6333.") from None


class OpenQdrant:
    """A collection that is open."""

    def __init__(self, client: Any, collection: str, where: str) -> None:
        """`where` is the address or folder that errors name."""
        self._client, self._collection, self._where = client, collection, where
        self.count: int = client.count(collection, exact=True).count
        self.dimension: int = _dimension(client, collection)

    def nearest(self, vectors: numpy.ndarray, count: int) -> list[list[tuple[int, float]]]:
        """Positions and cosine similarities of the nearest vectors, best first."""
        from qdrant_client.models import QueryRequest

        found: list[list[tuple[int, float]]] = []
        for first in range(0, len(vectors), _QUERIES_AT_ONCE):
            part = vectors[first : first + _QUERIES_AT_ONCE]
            requests = [QueryRequest(query=vector.tolist(), limit=min(count, self.count)) for vector in part]
            with _told(self._where):
                answers = self._client.query_batch_points(self._collection, requests)
            found += [[(int(point.id), float(point.score)) for point in answer.points] for answer in answers]
        return found

    def close(self) -> None:
        """Let go of the files or the connection."""
        self._client.close()


def _opened(client: Any, collection: str, where: str, hint: str) -> OpenQdrant:
    try:
        with _told(where):
            if not client.collection_exists(collection):
                raise ExecutorError(f"Qdrant at {where} has no collection {collection!r}.", hint)
            return OpenQdrant(client, collection, where)
    except ExecutorError:
        client.close()
        raise


def _fill(client: Any, name: str, vectors: numpy.ndarray, texts: Sequence[str]) -> None:
    """Fill a new collection; one that holds all points already, from an attempt that ended early, stays as it is."""
    from qdrant_client.models import Distance, PointStruct, VectorParams

    if client.collection_exists(name):
        if client.count(name, exact=True).count == len(texts) and _dimension(client, name) == vectors.shape[1]:
            return
        client.delete_collection(name)
    client.create_collection(name, VectorParams(size=vectors.shape[1], distance=Distance.COSINE))
    for first in range(0, len(texts), _POINTS_AT_ONCE):
        part = range(first, min(first + _POINTS_AT_ONCE, len(texts)))
        points = [PointStruct(id=at, vector=vectors[at].tolist(), payload={"text": texts[at]}) for at in part]
        client.upsert(name, points, wait=True)


def _check(client: Any, name: str, vectors: numpy.ndarray) -> None:
    count, dimension = client.count(name, exact=True).count, _dimension(client, name)
    if (count, dimension) != vectors.shape:
        raise ExecutorError(
            f"The new collection {name!r} holds {count} vectors of {dimension} numbers, not {vectors.shape[0]} of "
            f"{vectors.shape[1]}; the old one stays in use.",
            "Look into the server's log, then run the stage again.",
        )


def _switch(client: Any, alias: str, name: str) -> None:
    """Let the alias lead to the new collection, in one step, and drop the one that it led to."""
    from qdrant_client.models import (
        CreateAlias,
        CreateAliasOperation,
        DeleteAlias,
        DeleteAliasOperation,
    )

    before = next((one.collection_name for one in client.get_aliases().aliases if one.alias_name == alias), None)
    if before == name:
        return
    create = CreateAliasOperation(create_alias=CreateAlias(collection_name=name, alias_name=alias))
    remove = [DeleteAliasOperation(delete_alias=DeleteAlias(alias_name=alias))] if before else []
    client.update_collection_aliases([*remove, create])
    if before:
        client.delete_collection(before)


def _dimension(client: Any, collection: str) -> int:
    """Numbers in a vector; 0 for a collection of another kind, with several vectors or none for a point."""
    return getattr(client.get_collection(collection).config.params.vectors, "size", 0)


def _content(vectors: numpy.ndarray, texts: Sequence[str]) -> str:
    """A short name of what an index holds, so that equal ones share a collection."""
    whole = hashlib.sha256(vectors.tobytes())
    for text in texts:
        whole.update(hashlib.sha256(text.encode()).digest())
    return whole.hexdigest()[:12]


def _client() -> Any:
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise ExecutorError(
            "rag.vector_store.type is qdrant, and qdrant-client is not installed.",
            "Run: pip install 'mloc-dagster[qdrant]'",
        ) from None
    return QdrantClient


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn what a server answers, or that it does not, into an ExecutorError."""
    from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

    try:
        yield
    except UnexpectedResponse as error:
        told = error.content.decode("utf-8", "replace")[:200]
        hint = "Check rag.vector_store.api_key." if error.status_code in (401, 403) else "Check rag.vector_store."
        raise ExecutorError(f"Qdrant at {where} answered {error.status_code}: {told}.", hint) from None
    except (ApiException, ResponseHandlingException) as error:
        raise ExecutorError(
            f"Qdrant at {where} does not answer: {error}.", "Check rag.vector_store.url and that the server runs."
        ) from None
