"""GPU names: many spellings, one device."""

from __future__ import annotations

import re

ANY = "any"
_ANY = {"any", "auto", "*", ""}
_VENDORS = {"nvidia", "amd", "intel", "tesla", "geforce", "instinct", "radeon", "quadro"}
_MEMORY_KINDS = {"hbm", "hbm2", "hbm2e", "hbm3", "hbm3e", "gddr6", "gddr6x", "gddr7"}
_FORM_FACTORS = {"sxm", "sxm2", "sxm3", "sxm4", "sxm5", "sxm6", "pcie", "nvl", "oam", "hgx", "dgx", "gpu"}
_NO_MODEL = _VENDORS | _FORM_FACTORS | _MEMORY_KINDS
_DEFAULT_MEMORY_GIB = {
    "t4": 16,
    "p100": 16,
    "l4": 24,
    "a10": 24,
    "a10g": 24,
    "a30": 24,
    "a40": 48,
    "l40": 48,
    "l40s": 48,
    "rtx3090": 24,
    "rtx4090": 24,
    "rtx5090": 32,
    "h100": 80,
    "h200": 141,
    "b200": 192,
    "mi250": 128,
    "mi300x": 192,
}
"""Memory in GiB of devices that come in one size (vendor data sheets)."""


def normalise(name: str) -> str:
    """Return the canonical name: `NVIDIA A100-SXM4-80GB` → `a100-80gb`; `auto`, `*` → `any`."""
    text = name.strip().lower()
    if text in _ANY:
        return ANY
    words = [word for word in re.split(r"[\s_\-/()]+", text) if word]
    memory = next((word for word in words if re.fullmatch(r"\d+(gb?|gib?)", word)), None)
    model = [w for w in words if w not in _NO_MODEL and w != memory]
    base = "".join(model) or text
    size = int(re.match(r"\d+", memory)[0]) if memory else None  # pyright: ignore[reportOptionalSubscript]
    if size is None or _DEFAULT_MEMORY_GIB.get(base) == size:
        return base
    return f"{base}-{size}gb"


def same_device(wanted: str, offered: str) -> bool:
    """Whether a device called `offered` satisfies a request for `wanted`.

    A request without a memory size accepts every size of that model.
    """
    want, have = normalise(wanted), normalise(offered)
    return want in (ANY, have) or have.startswith(f"{want}-")


def memory_gib(name: str) -> int | None:
    """Return the device memory in GiB that the name tells, or None."""
    canonical = normalise(name)
    match = re.search(r"-(\d+)gb$", canonical)
    return int(match[1]) if match else _DEFAULT_MEMORY_GIB.get(canonical)
