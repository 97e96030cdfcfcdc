"""Keeps Transformers from loading scikit-learn, which would cost each stage a fifth of its start and 140 MiB.

Transformers 5 imports it, and SciPy with it, as soon as a model class is named, for the confidence threshold of an
assistant model, which no stage has. Whoever imports scikit-learn for itself gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_IMPORTER = "transformers.generation.candidate_generator"


class _Lighter(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing; but before the module is looked for, have it believe that scikit-learn is not installed."""
        if fullname == _IMPORTER:
            utils = sys.modules["transformers.utils"]
            utils.__dict__["is_sklearn_available"] = lambda: False
        return None


def load_less() -> None:
    """See to it for this process; call it before Transformers is imported."""
    if not any(isinstance(finder, _Lighter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Lighter())
