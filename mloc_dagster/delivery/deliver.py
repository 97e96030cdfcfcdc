"""Deliver one run folder to the destination of its stage.

Each kind either delivers all of it or raises DeliveryError; delivering twice leaves the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from mloc_dagster.delivery.buckets import to_bucket
from mloc_dagster.delivery.errors import DeliveryError, TryAgain
from mloc_dagster.delivery.http import to_url
from mloc_dagster.delivery.hub import to_hub
from mloc_dagster.delivery.local import to_folder
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.output import Destination
from mloc_dagster.spec.references import BadReference, resolve
from mloc_dagster.store.home import Home

_LONGEST_PAUSE_SECONDS = 120
_KINDS: dict[str, Callable[[Path, Destination, Home], dict[str, Json]]] = {
    "local": to_folder,
    "http": to_url,
    "s3": to_bucket,
    "huggingface": to_hub,
}


def deliver(folder: Path, destination: Destination, home: Home, task: str) -> dict[str, Json]:
    """Deliver a finished run folder; returns what was delivered where. Raises DeliveryError after the last try.

    The folder is `<task id>/<stage>`, whatever lies above it. What is returned and raised holds no value of `${NAME}`.
    """
    from executors.secrets import Secrets

    secrets, what = Secrets(os.environ), f"{task}: {destination.type} delivery"
    try:
        values = {key: resolve(value, _no_stage, secrets) for key, value in destination.model_dump().items()}
        target = Destination.model_validate(values)
    except BadReference as error:
        raise DeliveryError(f"{what} is not tried: output.destination: {error}") from None
    last: Exception | None = None
    for attempt in range(target.retries + 1):
        if last is not None:
            time.sleep(min(target.retry_backoff_sec * attempt, _LONGEST_PAUSE_SECONDS))
        try:
            return secrets.hide(_KINDS[target.type](folder, target, home))
        except DeliveryError as error:
            raise DeliveryError(f"{what} failed: {secrets.hide(str(error))}\n{_kept(folder, home)}") from None
        except Exception as error:
            last = error
    reason = secrets.hide(_reason(last))[:500]
    tries = f"{target.retries + 1} times" if target.retries else "once"
    raise DeliveryError(f"{what} was tried {tries} and failed: {reason}\n{_kept(folder, home)}")


def _no_stage(name: str) -> dict[str, Json]:
    raise BadReference(f"a destination cannot use results of a stage ({name})")


def _reason(error: Exception | None) -> str:
    if isinstance(error, TryAgain):
        return str(error)
    cause = str(error.__cause__ or "") if error else ""
    return f"{type(error).__name__}: {error}{f' ({cause})' if cause not in str(error) else ''}"


def _kept(folder: Path, home: Home) -> str:
    own = home.run_folder(folder.parent.name, folder.name)
    return f"The result is kept in {own}; run the task again to deliver it, the work is not repeated"
