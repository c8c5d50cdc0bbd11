"""The policy's own words about its attempt: a critic's prompt for every rollout that the verifier could judge.

The critic is the policy itself, so nothing but the verdict and, where wanted, the problem's solution is new to it. The attempt
gets the critic's budget before the solution: a critique of an attempt that was not read would be about nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import RolloutGroup, Verdict
from cluster.spec.contexts import Critique
from rollout.context.templates import words_around
from rollout.context.thinking import shown
from rollout.context.words import Draw, Words


def critique_words(spec: Critique, group: RolloutGroup, verdicts: Sequence[Verdict], draw: Draw) -> list[Words]:
    found = []
    for rollout, verdict in zip(group.rollouts, verdicts, strict=True):
        if verdict.error is not None:
            found.append(Words())
            continue
        attempt = ("attempt", shown(rollout.text, spec.thinking))
        for_critic = [("feedback", _verdict_in_words(spec, verdict)), attempt]
        if spec.show_solution:
            for_critic.append(("solution", shown(group.problem.solution, spec.thinking)))
        found.append(Words([attempt] if spec.show_attempt else [], for_critic))
    return found


def _verdict_in_words(spec: Critique, verdict: Verdict) -> str:
    template = words_around(spec.template)
    return " ".join((template.right if verdict.passed else template.wrong, verdict.feedback)).strip()
