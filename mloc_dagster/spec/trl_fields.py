"""Names of the fields of TRL's config classes, so that a file is checked without importing TRL."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files


@cache
def of(config_class: str) -> frozenset[str]:
    """Return the field names of a TRL config class; empty for a class that the table lacks.

    The table is `tables/trl.json`, written by `python -m executors.training.fields` from the installed TRL.
    """
    table = json.loads(files("mloc_dagster.spec").joinpath("tables/trl.json").read_text("utf-8"))
    return frozenset(table["fields"].get(config_class, ()))
