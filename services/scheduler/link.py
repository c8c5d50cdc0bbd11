"""How an attempt's processes reach the scheduler, which alone writes the job store for them.

Unreachable is not lost: a call is repeated until its deadline while the scheduler restarts. ``FencedError`` is final.
"""

from __future__ import annotations

import time
from typing import Any

from cluster.errors import HoldfastError
from cluster.settings import NAMESPACE, SCHEDULER_ACTOR

RETRY_FOR_S = 120.0
CALL_TIMEOUT_S = 30.0


class SchedulerLink:
    """Calls of one attempt. ``call("commit_checkpoint", record)`` runs the scheduler's method of that name with the
    attempt's id in front."""

    def __init__(self, attempt_id: str):
        self.attempt_id = attempt_id
        self._handle: Any = None

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Run one method of the scheduler. Raises what it raised, or the last transport error after ``RETRY_FOR_S``."""
        import ray

        deadline = time.monotonic() + RETRY_FOR_S
        while True:
            try:
                if self._handle is None:
                    self._handle = ray.get_actor(SCHEDULER_ACTOR, namespace=NAMESPACE)
                reference = self._handle.attempt_call.remote(self.attempt_id, method, args, kwargs)
                return ray.get(reference, timeout=CALL_TIMEOUT_S)
            except ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            except (ray.exceptions.RayError, ValueError):
                if time.monotonic() > deadline:
                    raise
                self._handle = None
                time.sleep(0.5)


def _cause(error: Any) -> Exception:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, HoldfastError) else error
