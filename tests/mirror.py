"""A mirror with a tiny stand-in for every hub model and data set that the shipped task files name.

With `MLOC_MIRROR` (or `mirror:`) set to it, any of these files runs unmodified, offline, on a CPU, in seconds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mloc_dagster.spec import load_file
from mloc_dagster.spec.base import Json
from tests.tiny_model import make_tiny_llama

TASK_SPECS = Path(__file__).parents[1] / "task_specs"

Row = dict[str, Json]
Splits = dict[str, list[Row]]
"""Rows by split."""

_WORDS = ("sea", "sky", "salt", "night", "stone", "bread", "glass", "rain")


def make_mirror(folder: Path, files: Iterable[Path] | None = None) -> Path:
    """Build `models/<org>/<name>` and `datasets/<org>/<name>` for all ids that `files` (the shipped ones) name."""
    models, datasets = hub_ids(sorted(TASK_SPECS.rglob("*.yaml")) if files is None else files)
    first: Path | None = None
    for name in models:
        target = folder / "models" / name
        if first is None:
            first = make_tiny_llama(target, steps=0, chat=True)  # random weights always have something to say
        else:
            shutil.copytree(first, target)
    for name in datasets:
        write_dataset(folder / "datasets" / name, name)
    return folder


def hub_ids(files: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Return the hub models and data sets that task files name, sorted."""
    models: set[str] = set()
    datasets: set[str] = set()
    for file in files:
        for stage in load_file(file).stages:
            source, data = stage.spec.model.source, stage.spec.data
            if source is not None and source.type == "huggingface":
                models.add(source.identifier)
            name = data.dataset_name or data.url
            if name and not name.startswith("/") and "://" not in name and data.jsonl is None:
                datasets.add(name)
    return sorted(models), sorted(datasets)


def write_dataset(folder: Path, name: str) -> None:
    """Write a data set with the columns, splits and configurations of the real one."""
    if name not in DATASETS:
        raise KeyError(f"{name} has no stand-in; add its columns to DATASETS in tests/mirror.py")
    configs = DATASETS[name]()
    for config, splits in configs.items():
        for split, rows in splits.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': list(_card(configs))})}\n---\n", "utf-8")


def _card(configs: dict[str, Splits]) -> Iterator[dict[str, Json]]:
    """The part of a data set's card that tells where its splits are."""
    for config, splits in configs.items():
        files = [{"split": split, "path": f"{config}/{split}.jsonl"} for split in splits]
        yield {"config_name": config, "data_files": files}


def _mt_bench() -> dict[str, Splits]:
    rows: list[Row] = [
        {"category": "writing", "prompt": [f"Write about {word}.", "Shorter."], "reference": [], "prompt_id": index}
        for index, word in enumerate(_WORDS)
    ]
    return {"default": {"train": rows * 2}}


def _dolly() -> dict[str, Splits]:
    rows: list[Row] = [
        {"instruction": f"What is {word}?", "context": "", "response": f"It is {word}.", "category": "open_qa"}
        for word in _WORDS
    ]
    return {"default": {"train": rows * 2}}


def _capybara() -> dict[str, Splits]:
    return {
        "default": {"train": [{"source": "made up", "num_turns": 2, "messages": _talk(word)} for word in _WORDS] * 50}
    }


def _ultrachat() -> dict[str, Splits]:
    rows: list[Row] = [{"prompt": f"Tell me of {word}.", "prompt_id": word, "messages": _talk(word)} for word in _WORDS]
    return {"default": {split: rows for split in ("train_sft", "test_sft", "train_gen", "test_gen")}}


def _sst2() -> dict[str, Splits]:
    rows: list[Row] = [
        {
            "text": f"{'fine' if index % 2 else 'dull'} {word}",
            "label": index % 2,
            "label_text": ("negative", "positive")[index % 2],
        }
        for index, word in enumerate(_WORDS)
    ]
    return {"default": {split: rows for split in ("train", "validation", "test")}}


def _ultrafeedback() -> dict[str, Splits]:
    rows: list[Row] = [
        {
            "prompt": f"Tell me of {word}.",
            "prompt_id": word,
            "chosen": _talk(word)[:2],
            "rejected": [_talk(word)[0], {"role": "assistant", "content": "No."}],
            "messages": _talk(word)[:2],
            "score_chosen": 8.0,
            "score_rejected": 3.5,
        }
        for word in _WORDS
    ]
    return {"default": {split: rows * 2 for split in ("train_prefs", "test_prefs", "train_sft", "test_sft")}}


def _ultrafeedback_pairs() -> dict[str, Splits]:
    columns = ("chosen", "rejected", "score_chosen", "score_rejected")
    rows = [{key: row[key] for key in columns} for row in _ultrafeedback()["default"]["train_prefs"]]
    return {"default": {"train": rows, "test": rows}}


def _gsm8k() -> dict[str, Splits]:
    rows: list[Row] = [
        {
            "question": f"Ann has {n} and gets 2. How many?",
            "answer": f"{n} + 2 = <<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}",
        }
        for n in range(40)
    ]
    return {config: {"train": rows * 5, "test": rows[:8]} for config in ("main", "socratic")}


def _talk(word: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"Tell me of {word}."},
        {"role": "assistant", "content": f"{word} is near."},
        {"role": "user", "content": "And more?"},
        {"role": "assistant", "content": f"More {word}."},
    ]


DATASETS: dict[str, Callable[[], dict[str, Splits]]] = {
    "HuggingFaceH4/mt_bench_prompts": _mt_bench,
    "HuggingFaceH4/ultrachat_200k": _ultrachat,
    "HuggingFaceH4/ultrafeedback_binarized": _ultrafeedback,
    "SetFit/sst2": _sst2,
    "databricks/databricks-dolly-15k": _dolly,
    "openai/gsm8k": _gsm8k,
    "trl-lib/Capybara": _capybara,
    "trl-lib/ultrafeedback_binarized": _ultrafeedback_pairs,
}
"""Configurations of each data set, with the columns of the real one."""
