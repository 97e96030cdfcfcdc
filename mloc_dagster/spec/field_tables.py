"""Names of the fields of TRL's config classes and of vLLM's engine arguments, so that neither need be imported."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from mloc_dagster.spec.base import Json

_OWN = "PPOConfig"


def owner(config_class: str) -> str:
    """Whose config class it is, as a phrase."""
    return f"our {config_class}" if config_class == _OWN else f"TRL's {config_class}"


@cache
def trl(config_class: str | None = None) -> frozenset[str]:
    """Return the field names of a trainer's config class, or without one those of all; empty for one not in the tables.

    The tables are `tables/trl.json` and, of our own class, `tables/ppo.json`, written by
    `python -m executors.training.fields` from the installed TRL and from the PPO trainer.
    """
    fields: dict[str, list[str]] = _table("trl.json").get("fields", {}) | {_OWN: _table("ppo.json").get("fields", [])}
    if config_class is None:
        return frozenset(name for names in fields.values() for name in names)
    return frozenset(fields.get(config_class, ()))


@cache
def vllm() -> frozenset[str]:
    """Return the names of vLLM's engine arguments; empty when there is no table.

    The table is `tables/vllm.json`, written by `python -m executors.inference.fields` from the installed vLLM.
    """
    return frozenset(_table("vllm.json").get("fields", ()))


def _table(name: str) -> dict[str, Json]:
    file = files("mloc_dagster.spec").joinpath("tables", name)
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}
