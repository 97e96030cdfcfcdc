"""Names of files and properties of a provenance document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

DOCUMENT = "provenance.cdx.json"
PUBLIC_KEY = "provenance.pub.pem"
WEIGHT_FOLDERS = ("final_model", "final_lora")
FOLDER = "mloc:weights:folder"
"""Property: which of the two the files lie in."""
WEIGHTS = "mloc:weights:digest"
ON_HUBS = "mloc:hub:sha256"
"""Property of a file that hubs get in another form: the SHA-256 hex of that."""
CARD = "README.md"


def model_folder(folder: Path) -> Path | None:
    """Return the folder of the weights in a run folder, or None when it holds none."""
    return next((folder / name for name in WEIGHT_FOLDERS if (folder / name).is_dir()), None)


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder of weights in the order of their names."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def provenance_of(folder: Path) -> Iterator[Path]:
    """Yield the document and the public key of a run folder, where they are."""
    yield from (folder / name for name in (DOCUMENT, PUBLIC_KEY) if (folder / name).is_file())
