"""`spec.inference` and `spec.postprocess`: how a stage generates and exports."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, WithJsonSchema, model_validator

from mloc_dagster.spec.base import Json, Positive, Section, also


class Inference(Section):
    """Sampling settings; both engines read them alike."""

    system_prompt: Annotated[str | None, also("systemPrompt")] = None
    """System prompt of every conversation."""
    prompts: list[Json] | None = None
    """The prompts, when data gives none."""
    max_tokens: Annotated[Positive, also("max_new_tokens")] = 512
    """Longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Randomness; 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Share of probability that is sampled from."""
    top_k: Annotated[int | None, Field(ge=-1)] = None
    """Number of tokens that are sampled from."""
    do_sample: bool | None = None
    """Sample, or take the likeliest token."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 makes repetition less likely."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Above 0 makes tokens that occurred less likely."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Above 0 makes tokens less likely each time they occur."""
    stop: Annotated[list[str] | str, also("stop_sequences")] = []
    """Texts that end an answer."""
    seed: int | None = None
    """Seed of the sampling."""
    n: Positive = 1
    """Answers to each prompt."""


class ExportField(Section):
    """Where one exported field comes from."""

    source: Annotated[Literal["prompt", "output", "metadata", "item", "literal"], also("from")] = "output"
    """Where the value comes from."""
    key: str | None = None
    """Key inside that source."""
    value: Annotated[Json, also("literal")] = None
    """A constant value."""
    fallback: Json = None
    """Another place, when there is no value."""
    default: Json = None
    """The value, when there is none."""

    @model_validator(mode="before")
    @classmethod
    def _literal(cls, values: Json) -> Json:
        """A field that gives a value and no source is that value."""
        if isinstance(values, dict) and "value" in values and "source" not in values:
            return {**values, "source": "literal"}
        return values


def _export_kind(value: Json) -> str:
    return "field" if isinstance(value, (dict, ExportField)) else "constant"


_CONSTANT = {"type": ["string", "number", "boolean", "array", "null"]}
Export = Annotated[
    Annotated[ExportField, Tag("field")] | Annotated[Json, Tag("constant"), WithJsonSchema(_CONSTANT)],
    Discriminator(_export_kind),
]
"""A map that says where the value comes from, or `prompt`, `output`, `metadata.k`, `item.k`, or a constant."""


class JsonlExport(Section):
    """One JSON line per generated item."""

    path: str = "export.jsonl"
    """File name inside the run folder."""
    fields: dict[str, Export] = {"prompt": "prompt", "output": "output"}
    """Name of each exported field, and where its value comes from."""
    required_fields: list[str] = []
    """Fields without which the stage fails."""


class Postprocess(Section):
    """What happens to the items after generation."""

    jsonl_export: JsonlExport | None = None
    """Write one JSON line an item."""
