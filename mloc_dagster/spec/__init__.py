"""The task language: one YAML file to typed stages, all faults at once."""

from mloc_dagster.spec.faults import Fault, SpecError
from mloc_dagster.spec.load import load_file, load_text
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.taskfile import Stage, TaskFile

__all__ = ["Fault", "SpecError", "Stage", "StageSpec", "TaskFile", "load_file", "load_text"]
