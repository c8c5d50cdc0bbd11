"""Which state a job may go to from which, as data. The only place that decides whether a change is legal.

Invariant: terminal is terminal. A job waits in ``queued`` only while it is wanted to run, so a job that somebody cancelled
or paused while its attempt was being lost never starts again by itself.
"""

from __future__ import annotations

from cluster.errors import IllegalTransition

TRANSITIONS: dict[str, frozenset[str]] = {
    "queued": frozenset({"starting", "paused", "cancelled", "failed"}),
    "starting": frozenset({"running", "pausing", "cancelling", "queued", "paused", "succeeded", "failed", "cancelled"}),
    "running": frozenset({"pausing", "cancelling", "queued", "paused", "succeeded", "failed", "cancelled"}),
    "pausing": frozenset({"starting", "running", "cancelling", "queued", "paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "cancelled"}),
    "cancelling": frozenset({"succeeded", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
TERMINAL = frozenset(status for status, targets in TRANSITIONS.items() if not targets)
ACTIVE = ("starting", "running", "pausing", "cancelling")
"""An attempt holds resources."""
DESIRED = ("running", "paused", "cancelled")
"""What a user may want of a job."""

REQUESTS: dict[str, frozenset[str]] = {
    "cancel": frozenset({"queued", "starting", "running", "pausing", "paused", "cancelling", "cancelled"}),
    "pause": frozenset({"queued", "starting", "running", "pausing", "paused"}),
    "resume": frozenset({"paused", "pausing"}),
}
"""From which states a user may ask for what. To ask for what is so already is no error."""

STAGES_WHEN_LEAVING: dict[str, dict[str, str]] = {
    "succeeded": {},
    "failed": {"running": "failed", "queued": "skipped"},
    "cancelled": {"running": "cancelled", "queued": "skipped"},
    "queued": {"running": "queued"},
    "paused": {"running": "queued"},
}
"""What becomes of a job's stages when the job leaves the cluster for the state in the key."""


def check_transition(job_id: str, status: str, to: str) -> None:
    """Raises ``IllegalTransition`` naming the state, the wanted one and what is allowed."""
    if to in TRANSITIONS[status]:
        return
    allowed = sorted(TRANSITIONS[status])
    told = f"is already {status} and cannot become {to}" if status in TERMINAL else f"is {status} and cannot become {to}; allowed: {', '.join(allowed)}"
    raise IllegalTransition(f"job {job_id} {told}", details={"status": status, "allowed": allowed})


def check_request(job_id: str, status: str, action: str) -> None:
    """Raises ``IllegalTransition`` where a user's request does not fit the job's state."""
    if status in REQUESTS[action]:
        return
    terminal = status in TERMINAL
    allowed = [] if terminal else sorted(name for name, states in REQUESTS.items() if status in states)
    told = "it has ended" if terminal else f"it accepts: {', '.join(allowed)}"
    raise IllegalTransition(
        f"job {job_id} is {'already ' if terminal else ''}{status} and cannot {action}; {told}", details={"status": status, "allowed": allowed}
    )


def settle(to: str, desired: str) -> str:
    """Where a job really goes that its scheduler or its driver sends to ``to``, given what its user wants by now.

    They decide on a row that they read a moment ago; a cancel, pause or resume may have come in between. ``running`` as the
    answer to ``pausing`` says that the pause was taken back.
    """
    if to in ("queued", "paused"):
        return {"running": "queued", "paused": "paused", "cancelled": "cancelled"}[desired]
    if to == "pausing":
        return {"running": "running", "paused": "pausing", "cancelled": "cancelling"}[desired]
    return to
