"""What a limited process runs: jobs in over a pipe, one JSON answer out for each, as soon as it is known.

Invariant: it dies with its parent, keeps none of the parent's environment, and loads what its work module loads, no more.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1
MAX_TEXT = 2_000


def main(settings: dict[str, Any]) -> None:
    """Answer until the pipe closes."""
    _confine(settings["parent"], settings["memory_bytes"])
    pipe = Connection(settings["pipe"])
    answer = importlib.import_module(settings["work"]).answer  # before the first deadline starts
    pipe.send_bytes(b"{}")
    while True:
        try:
            jobs = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # a job whose parts this process cannot import
            pipe.send_bytes(_encode({"error": f"cannot be read by a limited process: {error}"[:MAX_TEXT]}))
            continue
        pipe.send_bytes(b"{}")
        for job in jobs:
            pipe.send_bytes(_answer(answer, job, settings["max_answer_bytes"]))


def _answer(answer: Callable[[Any], dict[str, Any]], job: Any, max_bytes: int) -> bytes:
    try:
        encoded = _encode(answer(job))
    except BaseException as error:  # SystemExit included: the work's own fault is data
        return _encode({"error": f"raised {type(error).__name__}: {error}"[:MAX_TEXT]})
    if len(encoded) > max_bytes:
        return _encode({"error": f"answered {len(encoded)} bytes; allowed are {max_bytes}"})
    return encoded


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
