"""What a verifier process runs: jobs in over a pipe, one JSON answer out for each, as soon as it is known.

Invariant: it dies with its parent, keeps none of the parent's environment, and loads neither torch nor transformers.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1
MAX_TEXT = 2_000
MAX_DETAILS = 20_000


def main(settings: dict[str, Any]) -> None:
    """Verify until the pipe closes."""
    _confine(settings["parent"], settings["memory_bytes"])
    pipe = Connection(settings["pipe"])
    import rollout.domains  # noqa: F401 - before the first deadline starts

    pipe.send_bytes(b"{}")
    while True:
        try:
            jobs = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # a domain that this process cannot import
            pipe.send_bytes(_encode({"error": f"cannot be read by a verifier process: {error}"[:MAX_TEXT]}))
            continue
        pipe.send_bytes(b"{}")
        for domain, problem, text in jobs:
            pipe.send_bytes(_verify(domain, problem, text))


def _verify(domain: Any, problem: Any, text: str) -> bytes:
    try:
        verdict = domain.verify(problem, text)
        details = verdict.details if len(_encode(verdict.details)) <= MAX_DETAILS else {"dropped": "details are too long"}
        error = None if verdict.error is None else f"failed: {verdict.error}"[:MAX_TEXT]
        return _encode(
            {
                "score": float(verdict.score),
                "passed": bool(verdict.passed),
                "feedback": verdict.feedback[:MAX_TEXT],
                "details": details,
                "error": error,
            }
        )
    except BaseException as error:  # SystemExit included: a verifier's own fault is data
        return _encode({"error": f"raised {type(error).__name__}: {error}"[:MAX_TEXT]})


def _encode(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


def _confine(parent: int, memory_bytes: int | None) -> None:
    """Die with the parent, leave no core dump, stay under the memory limit, write no log lines of libraries."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
