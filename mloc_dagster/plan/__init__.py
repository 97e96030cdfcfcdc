"""From a validated task file to the steps that carry it out."""

from mloc_dagster.plan.compiler import compile_plan
from mloc_dagster.plan.steps import Plan, Step

__all__ = ["Plan", "Step", "compile_plan"]
