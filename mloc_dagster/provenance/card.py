"""The model card as hubs get it."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def hub_card(path: Path) -> bytes:
    """A model card without a base model that is a path: hubs refuse it, and it tells of this machine."""
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard.load(path, ignore_metadata_errors=True)
    data = card.data
    assert isinstance(data, ModelCardData)
    base = data.base_model
    if not isinstance(base, str) or _HUB_ID.fullmatch(base):
        return path.read_bytes()
    data.base_model = None
    data.tags = [tag for tag in data.tags or () if base not in tag] or None
    return str(card).encode()
