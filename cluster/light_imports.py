"""Loading transformers without what it loads for features that nobody here calls."""

from __future__ import annotations

import sys


def without_scikit_learn() -> None:
    """Call before transformers' models are loaded: they then do not load scikit-learn and, with it, pandas and pyarrow.

    transformers wants them for assisted generation only, and where they are installed (MLflow brings them) loads them with every
    model: a second of processor time and 140 MB in each learner and teacher. Does nothing where scikit-learn is loaded.
    """
    if "sklearn" in sys.modules:
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # an import of it then fails, and it counts as not installed
    try:
        from transformers.utils import is_sklearn_available

        is_sklearn_available()  # remembers its first answer
    finally:
        del sys.modules["sklearn"]
