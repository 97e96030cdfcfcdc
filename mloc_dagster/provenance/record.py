"""Writes the document of weights that are about to be published, signed, with the public key beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mloc_dagster.files.atomic import write_text
from mloc_dagster.provenance.document import Published, document_of
from mloc_dagster.provenance.keys import as_pem, signing_key
from mloc_dagster.provenance.names import DOCUMENT, PUBLIC_KEY, model_folder
from mloc_dagster.provenance.repository import commit_of
from mloc_dagster.provenance.signature import signed
from mloc_dagster.spec.load import without_base
from mloc_dagster.spec.taskfile import Stage, TaskFile
from mloc_dagster.store.digests import Digests
from mloc_dagster.store.home import Home
from mloc_dagster.store.manifest import declared_names, write_manifest
from mloc_dagster.store.results import Envelope


def write_provenance(task: TaskFile, stage: Stage, envelope: Envelope, folder: Path, home: Home) -> bool:
    """Write the document of the weights in a run folder into it and, where that is a copy, into the task's own.

    Returns False for a result without weights, which gets none. The same result gives the same bytes, so that a
    delivery may be done again. Raises KeyUnusable.
    """
    weights = model_folder(folder)
    if weights is None or not envelope.metadata.get("weights_digest"):
        return False
    published = Published(task, stage, envelope, folder, weights, spec_sha256(task), commit_of(task))
    key = signing_key(home)
    document = signed(document_of(published, Digests(home)), key)
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    for place in {folder, home.run_folder(*envelope.task_id.split("/", 1))}:
        write_text(place / DOCUMENT, text)
        write_text(place / PUBLIC_KEY, as_pem(key.public_key()))
        write_manifest(place, envelope.task_id, declared_names(place))
    return True


def spec_sha256(task: TaskFile) -> str:
    """Return the SHA-256 hex of a task file's text; a submitted copy has that of its original."""
    return hashlib.sha256(f"{without_base(task.text).rstrip()}\n".encode()).hexdigest()
