"""Delivery to S3: one object a file, the manifest last, so that whoever sees it sees all of the result."""

from __future__ import annotations

from pathlib import Path

from mloc_dagster.delivery.errors import DeliveryError, TryAgain
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.output import Destination
from mloc_dagster.store.home import Home

_LAST = "manifest.json"


def to_bucket(folder: Path, target: Destination, home: Home) -> dict[str, Json]:
    """Put every file of a run folder below `<bucket>/<prefix>/<path>`; objects of other names there stay."""
    import fsspec

    prefix = "/".join(part.strip("/") for part in (target.bucket, target.prefix, target.path) if part)
    if ".." in prefix.split("/"):
        raise DeliveryError(f"s3://{prefix} has .. in it; remove it from output.destination")
    try:
        files = fsspec.filesystem("s3", skip_instance_cache=True)
    except ImportError:
        raise DeliveryError("an s3 destination needs the extra s3: pip install 'mloc-dagster[s3]'") from None
    names = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path.name == _LAST, path))
    for path in names:
        _put(files, path, f"{prefix}/{path.relative_to(folder).as_posix()}")
    return {"delivered_to": f"s3://{prefix}", "files": len(names)}


def _put(files: Json, path: Path, key: str) -> None:
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    try:
        files.put_file(str(path), key)
    except (PermissionError, NoCredentialsError, PartialCredentialsError) as error:
        way_out = "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and what they may write"
        raise DeliveryError(f"s3://{key}: {error}; {way_out}") from None
    except FileNotFoundError as error:
        raise DeliveryError(f"s3://{key}: {error}; check output.destination.bucket") from None
    except Exception as error:
        raise TryAgain(f"s3://{key}: {type(error).__name__}: {error}") from None
