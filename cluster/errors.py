"""Errors that cross process boundaries, each with a reason code.

One root, ``HoldfastError``. A reason is a short snake_case string that ends up in a job's row, its
event list and its MLflow run, so it is chosen from the names below and never built at run time.
Every class here pickles: Ray re-raises it in another process.
"""

from __future__ import annotations

LOST_REASONS = ("rollout_worker_lost", "teacher_lost", "publication_failed", "checkpoint_damaged", "fenced")
"""Losses of processes or files, not of the job: the attempt ends, and the next one starts from the last checkpoint."""


class HoldfastError(Exception):
    """An error that Holdfast raises itself. ``reason`` is machine-readable, ``message`` is for people."""

    reason = "internal_error"

    def __init__(self, message: str, *, reason: str | None = None, details: dict | None = None):
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.details = details or {}

    def __reduce__(self):
        return _rebuild, (type(self), self.message, self.reason, self.details)


def _rebuild(cls, message, reason, details):
    return cls(message, reason=reason, details=details)


class SpecError(HoldfastError):
    """A job file or a request that cannot be accepted. ``details["faults"]`` is a list of fault dicts."""

    reason = "invalid_spec"


class ResourceError(HoldfastError):
    """The cluster cannot hold what the job asks for; says what was needed and what was found."""

    reason = "insufficient_resources"


class WeightTransferError(HoldfastError):
    """A publication did not arrive whole (``publication_incomplete``), or the engine refused it."""

    reason = "publication_failed"


class ParityError(HoldfastError):
    """Engine and learner disagree on the log-probabilities of the same tokens after a publication."""

    reason = "parity_exceeded"


class TeacherError(HoldfastError):
    """The teacher's weights or scores are not the ones that the step asked for.

    Reasons: ``teacher_stale`` (wrong version), ``teacher_diverged`` (weights are not what the strategy
    gives), ``context_mismatch`` (a context of another problem), ``completion_tokens_changed`` (the ids
    scored are not the ids sampled), ``teacher_vocabulary`` (another checkpoint's ids mean other texts),
    ``teacher_architecture`` (a blend of two architectures).
    """

    reason = "teacher_stale"


class StageError(HoldfastError):
    """A stage cannot go on: ``verifier_failures``, ``non_finite_loss``, ``no_problems``, ``template_failed``,
    ``pattern_timeout``, ``pattern_invalid``; a record of rollouts that cannot be replayed: ``replay_missing``, ``replay_damaged``,
    ``replay_problem_missing``, ``replay_prompt_changed``, ``replay_sampling_differs``, ``replay_support_missing``,
    ``replay_too_long``; a given checkpoint that does not fit the model, or is not the one that was submitted: ``policy_unusable``,
    ``policy_changed``; a model folder or data file that is not the one that was submitted: ``model_changed``, ``dataset_changed``."""

    reason = "stage_failed"


class FencedError(HoldfastError):
    """A write by an attempt or a scheduler that has been replaced. The caller must stop at once."""

    reason = "fenced"


class IllegalTransition(HoldfastError):
    """A state change that the table in ``services/jobs/states.py`` does not allow."""

    reason = "illegal_transition"


class NotFound(HoldfastError):
    """No such job, stage, checkpoint."""

    reason = "not_found"


class Conflict(HoldfastError):
    """The request contradicts what is stored (an idempotency key with another body)."""

    reason = "conflict"
