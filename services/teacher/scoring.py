"""Requests to scores: batches of token ids through one teacher, and an answer per request.

Legend: T completion tokens, K support size, V vocabulary, H' width of the hidden states. Invariant: every answer says
which update the teacher had and which token ids were scored, and stands at its request's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cluster.errors import TeacherError
from cluster.messages import TeacherRequest, TeacherScores, token_digest
from services.teacher.mixture import Mixture
from services.teacher.rows import Asked, teacher_rows
from trainer.modeling.packed import PackedSequences, pack_sequences
from trainer.modeling.scoring import RowScores


def batches(requests: Sequence[TeacherRequest], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of requests, longest prompts first and equal ones together, in runs of one support size and at most
    ``batch_tokens`` tokens."""

    def shape(index: int) -> tuple[int, int]:
        request = requests[index]
        width = 0 if request.support_ids is None else request.support_ids.shape[1]
        return width, len(request.prompt_token_ids) + len(request.completion_token_ids)

    def order(index: int) -> tuple[int, int, bytes, int]:
        prompt = requests[index].prompt_token_ids
        return shape(index)[0], len(prompt), prompt.tobytes(), len(requests[index].completion_token_ids)

    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(requests)), key=order, reverse=True):
        width, length = shape(index)
        if batch and (tokens + length > batch_tokens or width != shape(batch[0])[0]):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch


def score_requests(
    teacher: Mixture, requests: Sequence[TeacherRequest], asked: Asked, *, version: int, batch_tokens: int, device: torch.device
) -> list[TeacherScores]:
    """Scores in the order of the requests. Raises TeacherError ``teacher_diverged`` for scores that are not finite."""
    results: dict[int, TeacherScores] = {}
    for batch in batches(requests, batch_tokens):
        part = [requests[index] for index in batch]
        results.update(zip(batch, _score_batch(teacher, part, asked, version, device), strict=True))
    return [results[index] for index in range(len(requests))]


@torch.no_grad()
def _score_batch(
    teacher: Mixture, requests: list[TeacherRequest], asked: Asked, version: int, device: torch.device
) -> Iterator[TeacherScores]:
    packed = pack_sequences([(r.prompt_token_ids, r.completion_token_ids) for r in requests], device=device, share_prompts=True)
    given = None
    if requests[0].support_ids is not None:
        given = torch.from_numpy(np.concatenate([r.support_ids for r in requests]).astype(np.int64)).to(device)
    states = teacher.hidden_states(packed)
    rows = teacher_rows(
        states, teacher.head(), packed.target_ids, asked, support_ids=given, masked=teacher.masked, absent=teacher.absent
    )
    if not torch.isfinite(rows.logprobs).all():
        raise TeacherError(f"the teacher at update {version} gives log-probabilities that are not finite", reason="teacher_diverged")
    return _answers(requests, packed, rows, states if asked.full == "hidden" else None, version, given=given is not None)


def _answers(
    requests: list[TeacherRequest], packed: PackedSequences, rows: RowScores, states: Tensor | None, version: int, *, given: bool
) -> Iterator[TeacherScores]:
    """One answer per sequence, as arrays of its own; ids that the caller gave are not sent back."""

    def split(values: Tensor | None) -> list[Tensor] | list[None]:
        return [None] * len(requests) if values is None else packed.split_rows(values)

    columns = zip(
        requests,
        split(packed.target_ids),
        split(rows.logprobs),
        split(None if given else rows.support_ids),
        split(rows.support_logprobs),
        split(rows.entropies),
        split(states),
        split(rows.full_logprobs),
        strict=True,
    )
    for request, scored, logprobs, support_ids, support_logprobs, entropies, hidden, full_logprobs in columns:
        yield TeacherScores(
            rollout_id=request.rollout_id,
            problem_id=request.problem_id,
            teacher_version=version,
            completion_digest=token_digest(_array(scored, np.int32)),
            logprobs=_array(logprobs, np.float32),
            support_ids=_array(support_ids, np.int32),
            support_logprobs=_array(support_logprobs, np.float32),
            entropies=_array(entropies, np.float32),
            hidden=_array(hidden, np.float32),
            full_logprobs=_array(full_logprobs, np.float32),
        )


def _array(values: Tensor | None, dtype: type) -> np.ndarray | None:
    """An array of its own: a view would carry the whole batch to the receiver."""
    if values is None:
        return None
    values = values.float() if values.is_floating_point() else values  # numpy knows no bfloat16
    return values.cpu().numpy().astype(dtype, copy=True)
