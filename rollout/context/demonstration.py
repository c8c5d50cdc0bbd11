"""The problem's own solution, for every rollout (SDFT, 2601.19897; OPSD, 2601.18734)."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import RolloutGroup, Verdict
from cluster.spec.contexts import Demonstration
from rollout.context.feedback import feedback_parts
from rollout.context.thinking import shown
from rollout.context.words import Draw, Words


def demonstration_words(spec: Demonstration, group: RolloutGroup, verdicts: Sequence[Verdict], draw: Draw) -> list[Words]:
    found = []
    for rollout, verdict in zip(group.rollouts, verdicts, strict=True):
        parts = [("solution", shown(group.problem.solution, spec.thinking))]
        if spec.feedback == "always":
            parts += feedback_parts(verdict)
        if spec.show_attempt:
            parts.append(("attempt", shown(rollout.text, spec.thinking)))
        found.append(Words(parts))
    return found
