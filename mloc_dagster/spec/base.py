"""The base of every typed section of a task file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from mloc_dagster.spec.quantity import parse_cpu, parse_memory


class Section(BaseModel):
    """A frozen section that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


@dataclass(frozen=True)
class Also:
    """Further spellings that the same key is known by."""

    names: tuple[str, ...]


def also(*names: str) -> Also:
    """Mark a field with the other spellings that a file may use for it."""
    return Also(names)


Json = Any
"""Any JSON value; used only where a file may really hold anything."""

_AMOUNT = r"^\s*[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?\s*"


def _quantity_schema(units: str) -> dict[str, Any]:
    return {"anyOf": [{"type": "number", "minimum": 0}, {"type": ["string"], "pattern": f"{_AMOUNT}{units}\\s*$"}]}


Cpu = Annotated[float, BeforeValidator(parse_cpu), Field(ge=0), WithJsonSchema(_quantity_schema("m?"))]
"""CPU cores; `500m` is half a core."""

_MEMORY = r"([bB]|[kKgGtTpP][iI]?[bB]?|[mM]([iI][bB]?|[bB])|M)?"
Bytes = Annotated[int, BeforeValidator(parse_memory), Field(ge=0), WithJsonSchema(_quantity_schema(_MEMORY))]
"""Bytes; `64Gi`, `32GiB`, `1.5Gi` are 1024-based."""

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
