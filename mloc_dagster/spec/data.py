"""`spec.data`: prompts, training rows and where they come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec.base import Json, NotNegative, Positive, Section, also


class Jsonl(Section):
    """Rows of a JSON-lines file: one object a line."""

    path: Annotated[str | None, also("uri", "worker_path")] = None
    task_id: Annotated[str | None, also("taskId")] = None
    url: Annotated[str | None, also("download_url")] = None
    prompt_field: str | None = None
    response_field: str | None = None
    text_field: str | None = None
    chosen_field: str | None = None
    rejected_field: str | None = None
    query_field: str | None = None
    separator: str | None = None
    headers: dict[str, str] = {}
    timeout_sec: Annotated[float, Field(gt=0), also("timeoutSec")] = 300.0


class Preference(Section):
    """One prompt with a preferred and a rejected answer."""

    prompt: Json
    chosen: Json
    rejected: Json


class TemplateColumn(Section):
    """One value that a graph template shows, from an ancestor's envelope."""

    label: str
    expr: str | None = None
    node: str | None = None
    path: str | None = None
    default: Json = None


class TemplateOptions(Section):
    """Words around the columns."""

    intro: str | None = None
    closing: str | None = None
    role: str | None = None


class GraphTemplate(Section):
    """One prompt built from the results of other stages."""

    name: str = "two_column_briefing"
    text: str | None = None
    columns: list[TemplateColumn] = []
    options: TemplateOptions = TemplateOptions()
    append_system_prompt: bool = False


class InputDataset(Section):
    """A data set behind an input source."""

    url: str
    name: str | None = None
    split: str = "train"
    column: str = "text"


class InputSource(Section):
    """Where one kind of input comes from (workflow dialect)."""

    source: Literal["manual", "dataset", "file", "previous_stage"] = "manual"
    questions: list[str] = []
    stage_output: str | None = None
    format: str | None = None
    context_field: str | None = None
    answer_field: str | None = None
    dataset_config: InputDataset | None = None
    file_path: str | None = None


class InputSources(Section):
    """Queries, contexts and first answers that a stage combines into prompts."""

    queries: InputSource | None = None
    contexts: InputSource | None = None
    initial_answers: InputSource | None = None


class Processing(Section):
    """How combined inputs become prompts."""

    prompt_template: str | None = None
    max_context_length: Positive | None = None
    context_truncation: Literal["smart", "head", "tail"] = "smart"
    combine_contexts: bool = True
    context_separator: str = "\n\n"
    combine_inputs: bool = True
    input_separator: str = "\n\n"


class RowSource(Section):
    """Rows in a bucket or a local file (`dataset.source` of the older dialect)."""

    type: Literal["s3", "local"]
    path: str
    bucket: str | None = None


class Data(Section):
    """Prompts (inference, rag, agent) or rows (trainers). The first source that is given is used."""

    type: Literal["dataset", "list", "graph_template", "jsonl", "static"] | None = None
    url: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    column: str = "text"
    shuffle: bool = False
    seed: int = 42
    buffer_size: Positive | None = None
    metadata_columns: dict[str, str] | list[str] = []
    metadata_include_all: bool = False
    items: list[Json] | None = None
    metadata: Annotated[list[Json] | None, also("items_metadata")] = None
    template: GraphTemplate | None = None
    task: str | None = None
    prompts: list[Json] | None = None
    preferences: list[Preference] | None = None
    jsonl: Jsonl | None = None
    dataset_name: str | None = None
    config_name: str | None = None
    max_samples: NotNegative | None = None
    prompt_column: str | None = None
    response_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    text_field: Annotated[str | None, also("text_column")] = None
    separator: str = "\n\n"
    prompt_template: str | None = None
    source: RowSource | None = None
    input_sources: InputSources | None = None
    processing: Processing | None = None
