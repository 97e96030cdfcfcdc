"""`manifest.json`: what a run folder holds, and what the task file asked for but is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from mloc_dagster.files.atomic import HALF, write_json
from mloc_dagster.spec.base import Json
from mloc_dagster.store.digests import file_digest

_ALIASES: dict[str, tuple[str, ...]] = {
    "trained_model": ("final_model", "final_lora"),
    "full_model": ("final_model",),
    "model": ("final_model", "final_lora"),
    "adapter_weights": ("final_lora",),
    "adapter": ("final_lora",),
    "training_logs": ("logs",),
    "logs": ("logs",),
    "checkpoints": ("checkpoints",),
    "responses": ("responses.json",),
}
_FOLDERS = ("logs", "artifacts", "final_model", "final_lora", "checkpoints")
_STANDARD = ("responses.json", *_FOLDERS)


def write_manifest(folder: Path, task_id: str, declared: list[str]) -> dict[str, Json]:
    """Write and return the manifest of a run folder; `declared` are the names of `output.artifacts`.

    Files that did not change since the manifest before are not read again.
    """
    now, known = datetime.now(UTC), known_digests(folder)
    entries = [_entry(folder, name, path, True, known) for name, path in _declared(folder, declared)]
    named = {entry["path"] for entry in entries}
    for path in _present(folder):
        if path not in named:
            entries.append(_entry(folder, path, path, path == "responses.json", known))
    manifest: dict[str, Json] = {"task_id": task_id, "generated_at": now.isoformat(), "entries": entries}
    write_json(folder / "manifest.json", manifest)
    return manifest


def declared_names(folder: Path) -> list[str]:
    """Return the names that a manifest was made with: what is required, there or missing."""
    try:
        entries = json.loads((folder / "manifest.json").read_text("utf-8"))["entries"]
        return [str(one["name"]) for one in entries if one["required"] and one["name"] != "responses.json"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def known_digests(folder: Path) -> dict[str, str]:
    """Return SHA-256 by path as the manifest tells them, of files that did not change since."""
    try:
        told = json.loads((folder / "manifest.json").read_text("utf-8"))
        since = datetime.fromisoformat(told["generated_at"]).timestamp()
        entries = [one for one in told["entries"] if "sha256" in one]
        return {one["path"]: one["sha256"] for one in entries if _unchanged(folder / one["path"], one["size"], since)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _unchanged(path: Path, size: int, since: float) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_size == size and found.st_mtime <= since


def _declared(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys(names):
        plain = name.strip("/")
        choices = _ALIASES.get(plain, (plain,))
        yield name, next((choice for choice in choices if (folder / choice).exists()), choices[0])


def _present(folder: Path) -> list[str]:
    """Relative paths worth an entry: the standard ones, files at the top, archives."""
    tops = [path.name for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    archives = [f"artifacts/{path.name}" for path in sorted((folder / "artifacts").glob("[!.]*")) if path.is_file()]
    names = [*(name for name in _STANDARD if (folder / name).exists()), *tops, *archives]
    return [name for name in dict.fromkeys(names) if name != "manifest.json"]


def _entry(folder: Path, name: str, path: str, required: bool, known: Mapping[str, str]) -> dict[str, Json]:
    place = folder / path
    inside = folder.resolve() in place.resolve().parents
    if not inside or not place.exists():
        return {
            "name": name,
            "path": path,
            "type": "folder" if name.endswith("/") or path in _FOLDERS else "file",
            "required": required,
            "status": "missing",
        }
    if place.is_dir():
        files = [file for file in place.rglob("*") if file.is_file() and not file.name.endswith(HALF)]
        size = sum(file.stat().st_size for file in files)
        return {
            "name": name, "path": path, "type": "folder", "required": required, "status": "present",
            "size": size, "file_count": len(files),
        }  # fmt: skip
    return {
        "name": name, "path": path, "type": "file", "required": required, "status": "present",
        "size": place.stat().st_size, "sha256": known.get(path) or file_digest(place).removeprefix("sha256:"),
    }  # fmt: skip
