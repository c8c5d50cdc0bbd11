"""One verification inside a limited process: (domain, problem, text) to a verdict's fields as JSON.

Invariant: neither torch nor transformers is loaded.
"""

from __future__ import annotations

import json
from typing import Any

import rollout.domains  # noqa: F401 - loaded before the first deadline starts
from rollout.processes.process import MAX_TEXT

MAX_DETAILS = 20_000


def answer(job: tuple[Any, Any, str]) -> dict[str, Any]:
    domain, problem, text = job
    verdict = domain.verify(problem, text)
    short = len(json.dumps(verdict.details, default=str)) <= MAX_DETAILS
    return {
        "score": float(verdict.score),
        "passed": bool(verdict.passed),
        "feedback": verdict.feedback[:MAX_TEXT],
        "details": verdict.details if short else {"dropped": "details are too long"},
        "error": None if verdict.error is None else f"failed: {verdict.error}"[:MAX_TEXT],
    }
