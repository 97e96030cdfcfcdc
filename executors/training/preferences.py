"""Rows of preferences in TRL's formats.

A pair becomes tokens as in supervised training: for a model with a chat template prompt and answers are turns; for a
plain model each answer follows its prompt after `separator`.
"""

from __future__ import annotations

from datasets import Dataset

from executors.rows import Preference, TrainingRows, as_turns, needs_template, preferences
from mloc_dagster.spec.base import Json


def as_pairs(rows: TrainingRows, *, has_chat_template: bool) -> tuple[Dataset, list[str]]:
    """Return `prompt` (where the rows have one), `chosen` and `rejected` in memory, and warnings.

    Raises ExecutorError for rows that cannot be learned from.
    """
    pairs = preferences(rows)
    equal = [index for index, pair in enumerate(pairs) if pair.chosen == pair.rejected]
    warnings = []
    if equal:
        what = f"{rows.table.origin}: chosen equals rejected in {len(equal)} of {len(pairs)} rows"
        warnings.append(f"{what} (first: row {equal[0]}); they teach nothing")
    return Dataset.from_list([_record(pair, rows, has_chat_template) for pair in pairs]), warnings


def _record(pair: Preference, rows: TrainingRows, has_chat_template: bool) -> dict[str, Json]:
    plain = isinstance(pair.chosen, str) and isinstance(pair.rejected, str)
    if not has_chat_template and not plain:
        raise needs_template(rows.table)
    if pair.prompt is None:
        return {"chosen": pair.chosen, "rejected": pair.rejected}
    if has_chat_template:
        chosen, rejected = as_turns(pair.chosen, "assistant"), as_turns(pair.rejected, "assistant")
        return {"prompt": as_turns(pair.prompt, "user"), "chosen": chosen, "rejected": rejected}
    separator = rows.fields.separator
    return {
        "prompt": pair.prompt,
        "chosen": f"{separator}{pair.chosen}",
        "rejected": f"{separator}{pair.rejected}",
    }
