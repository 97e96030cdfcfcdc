"""Delivery to a model hub: the weights, or the whole result of a stage that has none, in one commit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.delivery.errors import DeliveryError, TryAgain
from mloc_dagster.provenance.card import hub_card
from mloc_dagster.provenance.names import provenance_of
from mloc_dagster.sources.huggingface import endpoint
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.output import Destination
from mloc_dagster.store.home import Home

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_WORTH_ANOTHER_TRY = {408, 409, 412, 429}


def to_hub(folder: Path, target: Destination, home: Home) -> dict[str, Json]:
    """Make the repository unless it is there, and commit the files; files that have not changed are not sent again."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    repo = str(target.repo_id)
    api = HfApi(endpoint=endpoint() or None, token=os.environ.get("HF_TOKEN") or False)
    try:
        repo = api.create_repo(repo, private=target.private, exist_ok=True).repo_id
        message = f"{folder.parent.name}/{folder.name}"
        commit = api.create_commit(repo, list(_operations(folder, target.path)), commit_message=message)
    except HFValidationError as error:
        raise DeliveryError(f"output.destination.repo_id: {error}") from None
    except json.JSONDecodeError as error:
        raise TryAgain(f"{repo}: the hub's answer is not readable: {error}") from None
    except ValueError as error:  # a model card that the hub refuses
        raise DeliveryError(f"{repo}: {error}") from None
    except HfHubHTTPError as error:
        raise _refusal(repo, error) from None
    return {"delivered_to": repo, "commit": str(commit.oid)}


def _operations(folder: Path, below: str | None) -> Iterator[CommitOperationAdd]:
    from huggingface_hub import CommitOperationAdd

    weights = next((folder / name for name in ("final_model", "final_lora") if (folder / name).is_dir()), folder)
    for path in sorted(path for path in weights.rglob("*") if path.is_file()):
        name = "/".join(filter(None, [(below or "").strip("/"), path.relative_to(weights).as_posix()]))
        yield CommitOperationAdd(name, hub_card(path) if name == "README.md" else str(path))
    for path in provenance_of(folder) if weights != folder else ():
        yield CommitOperationAdd("/".join(filter(None, [(below or "").strip("/"), path.name])), str(path))


def _refusal(repo: str, error: Exception) -> DeliveryError | TryAgain:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    told = f"{repo}: the hub answered {status}: {str(error).splitlines()[-1][:200]}"
    if status in (401, 403, 404):
        return DeliveryError(f"{told}; export an HF_TOKEN that may write to {repo}")
    if 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:
        return DeliveryError(f"{told}; check output.destination")
    return TryAgain(told)
