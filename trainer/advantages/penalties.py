"""What is added to a completion's score before advantages are formed: penalties, so 0.0 or less (k1 may be of either sign).

Pure. Legend: T completion tokens. The verdict itself stays as it is: passed and score are recorded without penalties.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.objectives.kl_estimators import KL_ESTIMATORS


def overlong_penalty(num_tokens: int, max_tokens: int, spec: Any) -> float:
    """min(0, -(len - (max - buffer)) / buffer x penalty), so -penalty at the limit (DAPO, 2503.14476, eq. 13)."""
    return min(0.0, -(num_tokens - (max_tokens - spec.buffer_tokens)) / spec.buffer_tokens * spec.penalty)


def reference_penalty(rollout_logprobs: np.ndarray, reference_logprobs: np.ndarray, spec: Any) -> float:
    """-coefficient x sum over tokens of the estimator of KL(rollout || reference). Both [T], of the sampled tokens."""
    estimator = KL_ESTIMATORS[spec.estimator]
    values = estimator(np.asarray(rollout_logprobs, np.float64), np.asarray(reference_logprobs, np.float64))
    return -spec.coefficient * float(values.sum())
