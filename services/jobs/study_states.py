"""What a study's status is, from how its members stand. Pure; the members' jobs are the truth.

Invariant: a study has no state of its own, so it can never disagree with its jobs.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.errors import IllegalTransition
from services.jobs.states import ACTIVE, TERMINAL

STUDY_STATUSES = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
REQUESTS: dict[str, frozenset[str]] = {
    "cancel": frozenset({"queued", *ACTIVE, "paused"}),
    "pause": frozenset({"queued", "starting", "running", "pausing", "paused"}),
    "resume": frozenset({"paused", "pausing", "failed", "cancelled"}),
}
"""Which members a request changes, by their status."""
GOES_ON = frozenset({"queued", "starting", "running"})
"""What a resume makes of members: where some are so already, a resume that is sent again is no error."""


def study_status(counts: Mapping[str, int]) -> str:
    """``counts``: members by status. A study that is done is succeeded, or cancelled or failed where any member is."""
    present = {status for status, count in counts.items() if count}
    if present & set(ACTIVE):
        return "running"
    if "queued" in present:
        return "running" if present & TERMINAL else "queued"
    if "paused" in present:
        return "paused"
    return next((status for status in ("cancelled", "failed") if status in present), "succeeded")


def check_study_request(study: str, status: str, counts: Mapping[str, int], action: str) -> None:
    """Raises ``IllegalTransition`` where no member takes the request, and for a resume while members are being cancelled.

    ``status``: the study's; ``counts``: by status, of the members that a request can change, those with a result left out.
    """
    present = {status for status, count in counts.items() if count}
    allowed = [] if present & {"cancelling"} else sorted(name for name, members in REQUESTS.items() if present & members)
    if action == "resume" and "cancelling" in present:
        raise IllegalTransition(
            f"study {study} has {counts['cancelling']} member(s) that are still being cancelled; resume it when they have ended",
            details={"status": status, "allowed": allowed},
        )
    if action == "resume" and present & GOES_ON:
        return
    if not present & REQUESTS[action]:
        told = f"it accepts: {', '.join(allowed)}" if allowed else "nothing is left to run"
        raise IllegalTransition(f"study {study} is {status} and cannot {action}; {told}", details={"status": status, "allowed": allowed})
