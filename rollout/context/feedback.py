"""The verifier's words about the rollout's own failed attempt, and the attempt itself where the spec asks for it.

Showing the attempt pulls the teacher towards it and narrows the policy (SDPO, 2601.20802, Table 6); hence off by default.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import RolloutGroup, Verdict
from cluster.spec.contexts import Feedback
from rollout.context.thinking import shown
from rollout.context.words import Draw, Part, Words


def feedback_parts(verdict: Verdict) -> list[Part]:
    """The feedback section, where the attempt failed and the verifier found words for it."""
    if verdict.passed or verdict.error is not None or not verdict.feedback.strip():
        return []
    return [("feedback", verdict.feedback)]


def feedback_words(spec: Feedback, group: RolloutGroup, verdicts: Sequence[Verdict], draw: Draw) -> list[Words]:
    found = []
    for rollout, verdict in zip(group.rollouts, verdicts, strict=True):
        parts = feedback_parts(verdict)
        if parts and spec.show_attempt:
            parts.append(("attempt", shown(rollout.text, spec.thinking)))
        found.append(Words(parts))
    return found
