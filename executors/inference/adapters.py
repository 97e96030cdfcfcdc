"""LoRA adapters: applied while generating, or merged into a copy of the model first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.fetch import Wanted, locate, unpack
from executors.weights import ADAPTER_FILE
from mloc_dagster.files.atomic import new_folder
from mloc_dagster.spec.model import Adapter


@dataclass(frozen=True)
class RuntimeAdapter:
    """An adapter folder; its scale is already part of it."""

    name: str
    folder: Path

    @property
    def rank(self) -> int:
        """The largest rank of its matrices."""
        config = _config(self.folder)
        return max([config["r"], *config.get("rank_pattern", {}).values()])


def find_adapter(ctx: TaskContext, adapter: Adapter, index: int) -> RuntimeAdapter:
    """Locate, unpack and scale one adapter; raises ExecutorError when it cannot be used."""
    wanted = Wanted(
        f"model.adapters[{index}]", ("final_lora",), adapter.path, adapter.task_id, adapter.url, adapter.headers
    )
    cache = ctx.out / ".cache"
    found = locate(wanted, results=ctx.results, downloads=cache / "downloads")
    folder = unpack(found, cache, archive_format=adapter.archive_format, marks=(ADAPTER_FILE,))
    name = adapter.name or f"adapter_{index}"
    if adapter.scale == 1.0:
        return RuntimeAdapter(name, folder)
    return RuntimeAdapter(name, _scaled(folder, adapter.scale, cache / f"adapter_{index}"))


def merge(model: Path, adapters: Sequence[RuntimeAdapter], into: Path, *, dtype: str, trust_remote_code: bool) -> Path:
    """Write a copy of the model with the adapters merged in, one after the other, and return its folder."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=trust_remote_code)
    for adapter in adapters:
        try:
            merged = PeftModel.from_pretrained(merged, str(adapter.folder)).merge_and_unload(safe_merge=True)
        except (RuntimeError, ValueError, KeyError) as error:
            raise does_not_fit(adapter, model, error) from error
    with new_folder(into) as partial:
        merged.save_pretrained(partial)
        AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code).save_pretrained(partial)
    return into


def does_not_fit(adapter: RuntimeAdapter, model: Path, error: Exception) -> ExecutorError:
    """Explain an adapter that was made for another model."""
    made_for = _config(adapter.folder).get("base_model_name_or_path")
    return ExecutorError(
        f"Adapter {adapter.name} ({adapter.folder}) does not fit the model {model}: {str(error).splitlines()[0]}.",
        f"It was trained on {made_for}; use that model.",
    )


def _config(folder: Path) -> dict:
    return json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))


def _scaled(folder: Path, scale: float, into: Path) -> Path:
    """A copy whose alpha is multiplied: LoRA adds alpha / r (or alpha / sqrt(r)) times its product."""
    with new_folder(into) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
        config = _config(folder)
        config["lora_alpha"] *= scale
        config["alpha_pattern"] = {key: value * scale for key, value in config.get("alpha_pattern", {}).items()}
        (partial / ADAPTER_FILE).write_text(json.dumps(config), encoding="utf-8")
    return into
