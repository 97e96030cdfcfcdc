"""Rows that are finished stay finished: `.cache/rows.jsonl` of the work folder, one line a row, written at once.

The next attempt of the same work generates only the others. A line counts for the token ids that it was made from, and
one that a kill left unfinished is passed over. The file goes when the stage has its result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from executors.base import Interrupted
from executors.context import TaskContext
from executors.inference.engine import Completion, Engine, Sampling

ROWS = Path(".cache") / "rows.jsonl"


def generate_rows(
    ctx: TaskContext, engine: Engine, prompts: Mapping[int, list[int]], sampling: Sampling, total: int
) -> dict[int, list[Completion]]:
    """Return the completions of each row, those of an earlier attempt included; progress counts `total` rows.

    Raises Interrupted when the stage is to stop; what is finished by then is kept.
    """
    path = ctx.out / ROWS
    found = _kept(path, prompts)
    waiting = {row: prompt for row, prompt in prompts.items() if row not in found}
    done = total - len(waiting)
    ctx.progress.update(done, total, "rows")
    if not waiting:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n")  # after a line that a kill cut off

        def finished(rows: Mapping[int, list[Completion]]) -> None:
            nonlocal done
            _write(file, ctx, rows, prompts)
            done += len(rows)
            ctx.progress.update(done, total, "rows")
            if ctx.stop.is_set():
                raise Interrupted

        return found | engine.generate(waiting, sampling, finished)


def _write(
    file: TextIO, ctx: TaskContext, rows: Mapping[int, list[Completion]], prompts: Mapping[int, list[int]]
) -> None:
    for row, completions in rows.items():
        line = {"row": row, "prompt": _digest(prompts[row]), "texts": [asdict(one) for one in completions]}
        file.write(json.dumps(ctx.redact(line), ensure_ascii=False) + "\n")
    file.flush()


def _kept(path: Path, prompts: Mapping[int, list[int]]) -> dict[int, list[Completion]]:
    if not path.is_file():
        return {}
    found: dict[int, list[Completion]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
                row, completions = line["row"], [Completion(**one) for one in line["texts"]]
            except (ValueError, KeyError, TypeError):
                continue
            if row in prompts and line["prompt"] == _digest(prompts[row]):
                found[row] = completions
    return found


def _digest(prompt: list[int]) -> str:
    return hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:16]
