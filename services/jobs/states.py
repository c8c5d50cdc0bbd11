"""The states of a job and of a stage, and which change is legal. Terminal is terminal."""

from __future__ import annotations

from cluster.errors import IllegalTransition

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
TRANSITIONS: dict[str, frozenset[str]] = {
    "queued": frozenset({"starting", "paused", "cancelled", "failed"}),
    "starting": frozenset({"running", "queued", "pausing", "cancelling", "failed", "paused", "cancelled"}),
    "running": frozenset({"succeeded", "failed", "queued", "pausing", "cancelling", "paused", "cancelled"}),
    "pausing": frozenset({"paused", "queued", "succeeded", "failed", "cancelling", "cancelled"}),
    "paused": frozenset({"queued", "cancelled"}),
    "cancelling": frozenset({"cancelled", "queued", "succeeded", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
ACTIVE = ("starting", "running", "pausing", "cancelling")
"""An attempt holds resources."""
REQUESTS: dict[str, frozenset[str]] = {
    "cancel": frozenset({"queued", "starting", "running", "pausing", "paused", "cancelling"}),
    "pause": frozenset({"queued", "starting", "running", "pausing"}),
    "resume": frozenset({"paused", "pausing"}),
}
"""From which states a user may ask for what."""


def check_transition(job_id: str, status: str, to: str) -> None:
    """Raises ``IllegalTransition`` naming the state, the wanted one and what is allowed."""
    if to not in TRANSITIONS[status]:
        raise IllegalTransition(
            f"job {job_id} is {status} and cannot become {to}", details={"status": status, "allowed": sorted(TRANSITIONS[status])}
        )


def check_request(job_id: str, status: str, action: str) -> None:
    """Raises ``IllegalTransition`` where a user's request does not fit the job's state."""
    if status in REQUESTS[action]:
        return
    allowed = sorted(name for name, states in REQUESTS.items() if status in states)
    already = "already " if status in TERMINAL else ""
    raise IllegalTransition(f"job {job_id} is {already}{status}: it cannot {action}", details={"status": status, "allowed": allowed})
