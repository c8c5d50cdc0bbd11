"""A rollout of the same group that passed, shown to the teacher (SDPO, 2601.20802, Table 2 and section 3).

A rollout of the group is a solution when its score reaches the threshold, its verifier did not fail and something of it is
left to show. A rollout is not shown its own success unless the spec says so: the only success of a group gets no solution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster.messages import Rollout, RolloutGroup, Verdict
from cluster.spec.contexts import SiblingSolution
from rollout.context.feedback import feedback_parts
from rollout.context.thinking import shown
from rollout.context.words import Draw, Words

Success = tuple[int, Rollout, Verdict]
"""Its place in the group, and what it is."""


def sibling_words(spec: SiblingSolution, group: RolloutGroup, verdicts: Sequence[Verdict], draw: Draw) -> list[Words]:
    texts = [shown(rollout.text, spec.thinking) for rollout in group.rollouts]
    successes = [
        (index, rollout, verdict)
        for index, (rollout, verdict) in enumerate(zip(group.rollouts, verdicts, strict=True))
        if verdict.error is None and verdict.score >= spec.success_threshold and texts[index].strip()
    ]
    found = []
    for index, (rollout, verdict) in enumerate(zip(group.rollouts, verdicts, strict=True)):
        eligible = [success for success in successes if spec.own_success or success[0] != index]
        sibling = CHOICES[spec.choice](eligible, rollout, draw)[0] if eligible else None
        parts = [] if sibling is None else [("solution", texts[sibling])]
        if spec.feedback == "always" or (spec.feedback == "without_solution" and sibling is None):
            parts += feedback_parts(verdict)
        if spec.show_attempt and sibling != index:
            parts.append(("attempt", texts[index]))
        found.append(Words(parts))
    return found


def _first(eligible: Sequence[Success], rollout: Rollout, draw: Draw) -> Success:
    return eligible[0]


def _random(eligible: Sequence[Success], rollout: Rollout, draw: Draw) -> Success:
    return eligible[draw(rollout.rollout_id) % len(eligible)]


def _best(eligible: Sequence[Success], rollout: Rollout, draw: Draw) -> Success:
    """The highest score, of those the shortest in tokens, of those the first."""
    return min(eligible, key=lambda success: (-success[2].score, len(success[1].completion.token_ids), success[0]))


CHOICES: dict[str, Callable[[Sequence[Success], Rollout, Any], Success]] = {"first": _first, "random": _random, "best": _best}
