"""`spec.data`: prompts, training rows and where they come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec.base import Json, NotNegative, Positive, Section, also


class Jsonl(Section):
    """Rows of a JSON-lines file: one object a line."""

    path: Annotated[str | None, also("uri", "worker_path")] = None
    """A file; tried first."""
    task_id: Annotated[str | None, also("taskId")] = None
    """The task whose file is used; tried second."""
    url: Annotated[str | None, also("download_url")] = None
    """Where to download the file; tried third."""
    prompt_field: str | None = None
    """Field that holds the prompt."""
    response_field: str | None = None
    """Field that holds the answer."""
    text_field: str | None = None
    """Field that holds a whole text."""
    chosen_field: str | None = None
    """Field that holds the preferred answer."""
    rejected_field: str | None = None
    """Field that holds the rejected answer."""
    query_field: str | None = None
    """Field that holds the query."""
    separator: str | None = None
    """Text between prompt and answer."""
    headers: dict[str, str] = {}
    """HTTP headers of the download."""
    timeout_sec: Annotated[float, Field(gt=0), also("timeoutSec")] = 300.0
    """Seconds that the download may take."""


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
    """Which kind of source is meant."""
    url: str | None = None
    """A data set's hub id, a file or a URL."""
    name: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    """Split with a slice: train, train[:200], train[:1%], validation[-50:]."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    column: str = "text"
    """Column that holds the prompts."""
    shuffle: bool = False
    """Shuffle the rows, after slicing."""
    seed: int = 42
    """Seed of the shuffle."""
    buffer_size: Positive | None = None
    """Rows that are shuffled at once."""
    metadata_columns: dict[str, str] | list[str] = []
    """Columns that are carried along: a list, or a map of column to name."""
    metadata_include_all: bool = False
    """Carry all other columns along."""
    items: list[Json] | None = None
    """The prompts themselves."""
    metadata: Annotated[list[Json] | None, also("items_metadata")] = None
    """One map an item, carried along."""
    template: GraphTemplate | None = None
    """One prompt from the results of other stages."""
    task: str | None = None
    """The one prompt of type static."""
    prompts: list[Json] | None = None
    """Prompts, or rows of prompt and response."""
    preferences: list[Preference] | None = None
    """Prompts with a preferred and a rejected answer."""
    jsonl: Jsonl | None = None
    """Rows of a JSON-lines file."""
    dataset_name: str | None = None
    """Hub id of the training data set."""
    config_name: str | None = None
    """Configuration of the data set."""
    max_samples: NotNegative | None = None
    """So many rows at most."""
    prompt_column: str | None = None
    """Column that holds the prompt."""
    response_column: str | None = None
    """Column that holds the answer."""
    chosen_column: str | None = None
    """Column that holds the preferred answer."""
    rejected_column: str | None = None
    """Column that holds the rejected answer."""
    text_field: Annotated[str | None, also("text_column")] = None
    """Column that holds a whole text."""
    separator: str = "\n\n"
    """Text between prompt and answer."""
    prompt_template: str | None = None
    """Text with {column} places, one row each."""
    source: RowSource | None = None
    """Rows in a bucket or a local file."""
    input_sources: InputSources | None = None
    """Queries, contexts and first answers to combine."""
    processing: Processing | None = None
    """How combined inputs become prompts."""
