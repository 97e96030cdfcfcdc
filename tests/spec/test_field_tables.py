"""The tables of foreign field names equal what the installed libraries have."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from mloc_dagster.spec import field_tables

TABLES = Path(field_tables.__file__).parent / "tables"


@pytest.mark.skipif(not find_spec("trl"), reason="TRL is not installed")
def test_trl() -> None:
    from executors.training.fields import trl_fields

    assert json.loads((TABLES / "trl.json").read_text("utf-8")) == trl_fields()


@pytest.mark.skipif(not find_spec("trl"), reason="TRL is not installed")
def test_ppo() -> None:
    from executors.training.fields import ppo_fields

    assert json.loads((TABLES / "ppo.json").read_text("utf-8")) == ppo_fields()
    assert field_tables.trl("PPOConfig") == set(ppo_fields()["fields"])  # pyright: ignore[reportArgumentType]


@pytest.mark.vllm
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
def test_vllm() -> None:
    from executors.inference.fields import vllm_fields

    assert json.loads((TABLES / "vllm.json").read_text("utf-8")) == vllm_fields()


def test_the_fields_of_all_classes_together() -> None:
    assert field_tables.trl("SFTConfig") < field_tables.trl()
    assert field_tables.trl("NoConfig") == frozenset()
    assert "max_num_seqs" in field_tables.vllm()
