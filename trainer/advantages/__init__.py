"""Scores and log-probabilities to advantages: pure functions."""

from __future__ import annotations

from trainer.advantages.outcome import outcome_advantages
from trainer.advantages.penalties import overlong_penalty, reference_penalty
from trainer.advantages.token import TokenAdvantages, discounted_sums, token_advantages

__all__ = [
    "TokenAdvantages",
    "discounted_sums",
    "outcome_advantages",
    "overlong_penalty",
    "reference_penalty",
    "token_advantages",
]
