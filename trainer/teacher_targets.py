"""A teacher's scores as a sample's fields, after proof that they are of this problem, these tokens and this teacher.

Legend: T completion tokens, K support size. Invariant: support ids and the teacher's log-probabilities have the same
columns, and with ``join_sampled`` the last one is the sampled token, whoever made the ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.errors import TeacherError
from cluster.messages import Rollout, TeacherScores, token_digest


def check_scores(rollout: Rollout, scores: TeacherScores, expected_version: int | None) -> None:
    """Raise TeacherError unless the scores are of this problem, these exact tokens and the expected teacher."""
    where = f"rollout {rollout.rollout_id}"
    if scores.problem_id != rollout.problem_id:
        raise TeacherError(
            f"{where} is of problem {rollout.problem_id}, but its teacher read the context of {scores.problem_id}",
            reason="context_mismatch",
        )
    token_ids = rollout.completion.token_ids
    if scores.completion_digest != token_digest(token_ids) or len(scores.logprobs) != len(token_ids):
        raise TeacherError(f"{where}: the teacher scored other token ids than were sampled", reason="completion_tokens_changed")
    if expected_version is not None and scores.teacher_version != expected_version:
        raise TeacherError(
            f"{where} was scored by teacher version {scores.teacher_version}, this step needs {expected_version}",
            reason="teacher_stale",
        )


def check_length(rollout: Rollout, values: np.ndarray, what: str) -> np.ndarray:
    """``values`` if there is one per completion token; TeacherError (``completion_tokens_changed``) otherwise."""
    num_tokens = len(rollout.completion.token_ids)
    if len(values) != num_tokens:
        raise TeacherError(
            f"rollout {rollout.rollout_id}: {len(values)} log-probabilities of the {what} for {num_tokens} tokens",
            reason="completion_tokens_changed",
        )
    return values


def teacher_fields(rollout: Rollout, scores: TeacherScores, composition: Any) -> dict[str, np.ndarray | None]:
    """The fields of a ``TrainingSample`` that come from the teacher."""
    support_ids, support_logprobs = _support(rollout, scores, composition.top_k)
    return {
        "teacher_logprobs": scores.logprobs,
        "support_ids": support_ids,
        "teacher_support_logprobs": support_logprobs,
        "teacher_hidden": scores.hidden,
        "teacher_full_logprobs": scores.full_logprobs,
    }


def _support(rollout: Rollout, scores: TeacherScores, support: Any | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(int32 [T, K], float32 [T, K]), or [T, K + 1] where the sampled token joins; None where the learner takes its own."""
    if support is None or support.support_from == "policy":
        return None, None
    completion = rollout.completion
    ids = completion.support_ids if scores.support_ids is None else scores.support_ids
    logprobs = scores.support_logprobs
    if ids is None or logprobs is None:
        what = "ids" if ids is None else "log-probabilities"
        raise ValueError(f"rollout {rollout.rollout_id}: the top_k support from the {support.support_from} has no {what}")
    if support.join_sampled and ids.shape[1] == support.k:
        ids = np.concatenate((ids, completion.token_ids[:, None].astype(ids.dtype)), axis=1)
    if support.join_sampled and logprobs.shape[1] == support.k:
        logprobs = np.concatenate((logprobs, scores.logprobs[:, None].astype(logprobs.dtype)), axis=1)
    if ids.shape != logprobs.shape:
        where = f"rollout {rollout.rollout_id}"
        raise ValueError(f"{where}: support ids are {ids.shape}, the teacher's log-probabilities {logprobs.shape}")
    return ids, logprobs
