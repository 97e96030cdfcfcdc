"""Where a trainer's metrics go: `training.log_with` and `training.tracker_project_name`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.training import Training

_PROJECT = {
    "wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME", "swanlab": "SWANLAB_PROJECT",
    "clearml": "CLEARML_PROJECT",
}  # fmt: skip
"""Environment variables that the callbacks of transformers read a project from."""
_TRACKIO = "trackio"


def tracking(training: Training, known: set[str], out: Path, warnings: list[str]) -> dict[str, Json]:
    """Trackers that are installed here. What they write to disk goes into `out`, unless the environment says where."""
    asked = [training.log_with] if isinstance(training.log_with, str) else training.log_with or []
    present = [name for name in asked if find_spec(name)]
    for name in asked:
        if name not in present:
            warnings.append(f"training.log_with: {name} is not installed here, so nothing is sent to it")
    places = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(out / "tensorboard")},
        "wandb": {"WANDB_DIR": str(out)},
        "mlflow": {"MLFLOW_TRACKING_URI": f"sqlite:///{out}/mlflow.db"},
    }
    for name in present:
        for variable, value in places.get(name, {}).items():
            os.environ.setdefault(variable, value)
    project = training.tracker_project_name
    if project is None:
        return {"report_to": present or "none"}
    for name in present:
        if name in _PROJECT:
            os.environ[_PROJECT[name]] = project
    without = [name for name in asked if name not in _PROJECT and name != _TRACKIO]
    if without == asked:
        reason = f"{', '.join(asked)} knows no projects" if asked else "log_with names no tracker"
        warnings.append(f"training.tracker_project_name is not used: {reason}")
    return {"report_to": present or "none"} | ({"project": project} if "project" in known else {})
