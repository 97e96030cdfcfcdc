"""What Transformers need not load is not loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.executors.conftest import ROOT

pytest.importorskip("sklearn")
_CODE = """
import sys, executors
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import candidate_generator
assert not candidate_generator.is_sklearn_available()
print(sorted({name.partition(".")[0] for name in sys.modules} & {"sklearn", "scipy"}))
from sklearn.metrics import roc_curve
print(callable(roc_curve))
"""


def test_scikit_learn_is_loaded_only_by_who_wants_it() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\nTrue\n", done.stdout + done.stderr
