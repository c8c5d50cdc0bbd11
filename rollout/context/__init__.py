"""What the teacher may see, by kind of context. A new one is one file here, one spec class, one line in ``stage.py``,
one test."""

from __future__ import annotations

from rollout.context.stage import CONTEXTS, StageContexts

__all__ = ["CONTEXTS", "StageContexts"]
