"""Minus the log-probability of the given token: supervised fine-tuning on demonstrations."""

from __future__ import annotations

from typing import Any

from trainer.objectives.base import RowInputs, RowValues


def cross_entropy(rows: RowInputs, spec: Any) -> RowValues:
    """The gradient goes through the policy's log-probability of the token, nothing else is read."""
    return RowValues(values=-rows.policy_logprobs)
