"""Write the field names of the trainers' config classes to the tables that the spec checks against."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

TABLES = Path(__file__).parents[2] / "mloc_dagster" / "spec" / "tables"
CONFIG_CLASSES = ("SFTConfig", "RewardConfig", "DPOConfig", "GRPOConfig")


def trl_fields() -> dict[str, object]:
    """Return the field names of each config class of the installed TRL."""
    import trl

    fields = {name: sorted(field.name for field in dataclasses.fields(getattr(trl, name))) for name in CONFIG_CLASSES}
    return {"trl": version("trl"), "fields": fields}


def ppo_fields() -> dict[str, object]:
    """Return the names of the keys that pass through to the PPO trainer."""
    from executors.training.ppo.settings import pass_through

    return {"fields": pass_through()}


def main() -> None:
    """Write the tables."""
    for name, table in (("trl.json", trl_fields()), ("ppo.json", ppo_fields())):
        (TABLES / name).write_text(json.dumps(table, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
