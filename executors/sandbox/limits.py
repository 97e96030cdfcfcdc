"""How much a command in the sandbox may use."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class Limits(BaseModel):
    """Bounds of one command and all that it starts; seconds and bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(default=60.0, gt=0)
    """Wall time of the whole."""
    cpu_seconds: int = Field(default=60, gt=0)
    """Processor time of each process."""
    memory_bytes: int = Field(default=1024 * MIB, ge=16 * MIB)
    """Each process's own data (hard), and the resident memory of all together (watched)."""
    processes: int = Field(default=64, gt=0)
    """Processes alive at the same time."""
    file_bytes: int = Field(default=256 * MIB, gt=0)
    """Size of one file."""
    disk_bytes: int = Field(default=512 * MIB, gt=0)
    """What the command may add to the work folder and `/tmp` together (watched)."""
    files: int = Field(default=20_000, gt=0)
    """Entries that the command may add to the work folder and `/tmp` together (watched)."""
    output_bytes: int = Field(default=64 * 1024, gt=0)
    """What is kept of stdout, and of stderr; the rest is cut with a note."""
