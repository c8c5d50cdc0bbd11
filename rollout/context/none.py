"""No privileged context: there is nothing to say of any rollout, and the teacher reads what the policy reads."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import RolloutGroup, Verdict
from cluster.spec.contexts import NoContext
from rollout.context.words import Draw, Words


def no_words(spec: NoContext, group: RolloutGroup, verdicts: Sequence[Verdict], draw: Draw) -> list[Words]:
    return [Words() for _ in group.rollouts]
