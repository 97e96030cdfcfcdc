"""Rows of a pulled data set or of a file, read offline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executors.base import ExecutorError
from executors.context import TaskContext
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.slices import Slice, SliceError, parse_slice

Row = Mapping[str, Json]
_BUILDERS = {".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text", ".arrow": "arrow"}


@dataclass(frozen=True)
class Table:
    """Rows in order, and what a person should know about how they were found."""

    rows: Sequence[Row]
    columns: tuple[str, ...]
    origin: str
    warnings: tuple[str, ...] = ()

    def shuffled(self, seed: int) -> Table:
        """The same rows in the order that `datasets.Dataset.shuffle(seed=seed)` gives."""
        import numpy

        order = numpy.random.default_rng(seed).permutation(len(self.rows))
        return self.picked([int(index) for index in order])

    def picked(self, indices: Sequence[int]) -> Table:
        """The rows with these numbers."""
        select = getattr(self.rows, "select", None)
        rows = select(indices) if select else [self.rows[index] for index in indices]
        return Table(rows, self.columns, self.origin, self.warnings)

    def column_of(self, key: str, name: str) -> str:
        """Return `name`, which the key of the spec asks for; raises ExecutorError when there is no such column."""
        if name in self.columns:
            return name
        raise ExecutorError(
            f"{key} is {name!r}, but {self.origin} has no such column.",
            f"Columns: {', '.join(self.columns) or 'none'}.",
        )


def pulled_data(ctx: TaskContext) -> Path | None:
    """The data set or file that was pulled for the stage, or that the older `dataset.source` names on this machine."""
    source = ctx.spec.data.source
    if ctx.data_path is None and source is not None and source.type == "local":
        return Path(source.path)
    return ctx.data_path


def open_table(path: Path, *, split: str = "train", config: str | None = None, cache: Path) -> Table:
    """Read a split of a data set folder or file. Arrow copies are written below `cache` only."""
    if not path.exists():
        raise ExecutorError(
            f"The data at {path} is not there.", "Check data.url, data.dataset_name or data.jsonl.path."
        )
    if path.is_file() and path.suffix in {".jsonl", ".ndjson"}:
        return _from_jsonl(path, _parsed(split))
    return _from_datasets(path, _parsed(split), config, cache)


def read_jsonl(path: Path) -> list[Row]:
    """Read one JSON object a line; raises ExecutorError naming the line that is none."""
    rows: list[Row] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ExecutorError(f"{path.name} line {number} is not JSON: {error}.", "One object a line.") from error
            if not isinstance(row, dict):
                raise ExecutorError(f"{path.name} line {number} is {row!r:.60}, not an object.", "One object a line.")
            rows.append(row)
    return rows


def table_of(rows: Sequence[Row], origin: str) -> Table:
    """A table of rows that are already here; its columns are all keys that occur."""
    return Table(rows, tuple(dict.fromkeys(key for row in rows for key in row)), origin)


def _parsed(split: str) -> Slice:
    try:
        return parse_slice(split)
    except SliceError as error:
        raise ExecutorError(f"data.split: {error}") from None


def _from_jsonl(path: Path, part: Slice) -> Table:
    rows = read_jsonl(path)
    if part.name != "train":
        raise ExecutorError(f"split is {part.name!r}, but the file {path.name} has only train.", "Write split: train.")
    return table_of([rows[index] for index in part.rows(len(rows))], path.name)


def _from_datasets(path: Path, part: Slice, config: str | None, cache: Path) -> Table:
    import datasets

    source, options = _builder(path)
    splits, config, part, warnings = _config_and_split(source, options, config, part, path.name)
    if part.name not in splits:
        raise ExecutorError(f"split is {part.name!r}, which {path.name} lacks.", f"Splits: {', '.join(splits)}.")
    try:
        loaded = datasets.load_dataset(source, name=config, split=part.name, cache_dir=str(cache), **options)
    except Exception as error:
        raise ExecutorError(f"{path.name} cannot be read as a data set: {error}.", "Check its files.") from error
    rows = loaded.select(part.rows(len(loaded)))
    return Table(rows, tuple(rows.column_names), f"{path.name} [{part}]", warnings)


def _builder(path: Path) -> tuple[str, dict[str, Any]]:
    if path.is_dir():
        return str(path), {}
    suffix = Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix
    if suffix not in _BUILDERS:
        known = ", ".join([".jsonl", *_BUILDERS])
        raise ExecutorError(f"{path.name} has no known data format ({suffix or 'no suffix'}).", f"Known: {known}.")
    return _BUILDERS[suffix], {"data_files": {"train": str(path)}} | ({"sep": "\t"} if suffix == ".tsv" else {})


def _config_and_split(
    source: str, options: dict[str, Any], config: str | None, part: Slice, name: str
) -> tuple[list[str], str | None, Slice, tuple[str, ...]]:
    """Splits, configuration and split to load.

    A configuration that is not there but names a split is taken for the prefix of the split (SPEC §7).
    """
    import datasets

    try:
        if options:
            return ["train"], None, part, ()
        configs = datasets.get_dataset_config_names(source)
        if config is None or config in configs:
            return datasets.get_dataset_split_names(source, config_name=config), config, part, ()
        splits = datasets.get_dataset_split_names(source)
    except Exception as error:
        raise ExecutorError(f"{name} cannot be read as a data set: {error}.", "Check its files.") from error
    if config in splits:
        part = part.renamed(config)
        warning = f"data.config_name: {config!r} is a split of {name}, not a configuration; read as {str(part)!r}"
        return splits, None, part, (warning,)
    raise ExecutorError(
        f"data.config_name is {config!r}, which {name} lacks.",
        f"Configurations: {', '.join(configs)}; splits: {', '.join(splits)}.",
    )
