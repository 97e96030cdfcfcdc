"""`spec.evaluation`: scores of earlier stages' items."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec.base import Json, Section

Metric = Literal["exact_match"]


class Evaluation(Section):
    """Compares the items of one or more candidates with a reference that each item carries."""

    metrics: list[Metric] = ["exact_match"]
    candidates: dict[str, list[Json] | str]
    reference: Annotated[str, Field(pattern=r"^(metadata|item)\.[\w.]+$")] = "metadata.reference"
    baseline: str | None = None
