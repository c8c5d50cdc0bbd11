"""The teacher of a process: weights that follow the policy by a strategy, the reference beside it, and their scores.

Plain PyTorch, no Ray. Legend: T completion tokens, K support size, V vocabulary, H' width of the hidden states (of a mixed
teacher the sum of its parts'). Invariant: the weights are a function of the anchor, the strategy and the published
snapshots, each applied exactly once, in order; every score says which update they had and which token ids were scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.messages import TeacherRequest, TeacherScores
from services.teacher.canary import Follow
from services.teacher.mixture import Mixture
from services.teacher.payload import Payload, cheaper_payload
from services.teacher.reference import REFERENCE, Reference
from services.teacher.rows import Asked
from services.teacher.scoring import score_requests
from services.teacher.stage_weights import Anchor, StageWeights
from services.teacher.strategies import State
from services.teacher.teacher_files import TeacherRecord, read_state, write_state
from services.teacher.weights import PolicyWeights

BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}
"""Tokens of one forward pass, prompts included; a longer sequence goes alone."""


class TeacherScorer:
    """``dtype`` is that of the forward pass; the weights that follow are float32 always.

    ``external_folders`` says where other models lie, by ``external_key`` (or by the path of an initial blend).
    """

    def __init__(
        self,
        model_folder: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int | None = None,
        batch_tokens: int | None = None,
        external_folders: Mapping[str, str] | None = None,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._batch_tokens = batch_tokens or BATCH_TOKENS[self._device.type]
        self._policy = PolicyWeights(Path(model_folder), device=self._device, dtype=getattr(torch, dtype))
        self._stage = StageWeights(self._policy, external_folders or {})
        self._reference = Reference(self._policy)

    @property
    def teacher_version(self) -> int:
        """Number of the last update that was followed; counts the policy's optimizer steps over all stages."""
        return self._stage.version

    @property
    def set_names(self) -> tuple[str, ...]:
        """The weight sets that are held."""
        return (*self._stage.sets, *((REFERENCE,) if self._reference.held else ()))

    def weights(self, name: str = "own") -> State:
        """The tensors of a held set, ``own``, ``own/<domain>``, ``policy``, ``external/<key>`` or ``reference``, themselves."""
        state = self._reference.kept_state() if name == REFERENCE else self._stage.sets[name].state
        if state is None:
            raise KeyError(name)
        return state

    # -- weights -----------------------------------------------------------------------------------------------------

    def begin_stage(self, teacher: Any, *, anchor: Anchor, snapshot: Path | None = None, update: int | None = None) -> Follow:
        """Take a stage's strategy and put the weights where it begins.

        ``policy``: at ``snapshot``; ``base``: at the model folder; ``keep``: as they are (the base model's before the first
        anchoring); ``resume``: as they are, and they must be at ``update`` already, or it is ``teacher_stale``. ``update``
        is the policy's update count now. Updates made while no stage had a teacher are not followed: a kept teacher stays.
        An initial blend applies where a teacher is anchored, not where it is kept. ``snapshot`` is also where a teacher that
        scores with the current policy finds it.
        """
        return self._stage.begin(teacher, anchor=anchor, snapshot=snapshot, update=update)

    def follow(self, update: int, snapshot: Path, *, after: int | None = None, ends_batch: bool = True) -> Follow:
        """Follow publication number ``update``; the last number again changes nothing.

        ``after`` is the update that the teacher must be at, ``update - 1`` where None. ``ends_batch`` is False for the
        optimizer steps of a batch before its last: only what moves with every optimizer step, and the policy's copy, move
        then. Raises TeacherError ``teacher_stale`` for an older number, and for a skipped one where the strategy must see
        each.
        """
        return self._stage.follow(update, snapshot, after=after, ends_batch=ends_batch)

    def begin_reference(self, *, anchor: Anchor, snapshot: Path | None = None, update: int | None = None) -> Follow:
        """Anchor the reference: ``policy`` at ``snapshot``, which is of ``update``; ``base`` at the model folder; ``keep`` as it is
        (the base model's where there was none); ``resume`` as it is, and it must have been restored, or it is ``teacher_stale``.
        """
        spare = None if self._reference.held else self._stage.release_unanchored()
        return self._reference.begin(anchor=anchor, snapshot=snapshot, update=update, spare=spare)

    # -- scores ------------------------------------------------------------------------------------------------------

    def score(
        self,
        requests: Sequence[TeacherRequest],
        *,
        temperature: float,
        top_k: int = 0,
        join_sampled: bool = False,
        entropies: bool = False,
        full: str = "none",
    ) -> list[TeacherScores]:
        """Teacher-forced scores in the order of the requests, at ``temperature``, over the full vocabulary.

        The support is each request's own ``support_ids`` where it has some, or the teacher's ``top_k`` most likely ids, with
        ``join_sampled`` [T, K + 1], the sampled token behind them. ``full`` adds hidden states [T, H'] or log-probabilities
        [T, V]. With teachers by domain, a request goes to that of its problem's. Raises TeacherError ``teacher_diverged`` for
        scores that are not finite.
        """
        asked = Asked(temperature=temperature, top_k=top_k, join_sampled=join_sampled, entropies=entropies, full=full)
        results: dict[int, TeacherScores] = {}
        for name, indices in self._routes(requests).items():
            teacher, part = self._stage.teachers[name], [requests[index] for index in indices]
            _check(asked, part, teacher)
            if full == "hidden" and len(self._stage.teachers) > 1:
                raise ValueError("full is 'hidden', but teachers by domain have no output matrix in common; use 'logprobs'")
            results.update(zip(indices, self._scores(teacher, part, asked, self.teacher_version), strict=True))
        return [results[index] for index in range(len(requests))]

    def _scores(self, teacher: Mixture, requests: Sequence[TeacherRequest], asked: Asked, version: int) -> list[TeacherScores]:
        return score_requests(teacher, requests, asked, version=version, batch_tokens=self._batch_tokens, device=self._device)

    def _routes(self, requests: Sequence[TeacherRequest]) -> dict[str, list[int]]:
        """Indices of requests by teacher."""
        routes: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            domain = "" if "" in self._stage.teachers else request.problem_id.split("/", 1)[0]
            if domain not in self._stage.teachers:
                known = sorted(self._stage.teachers)
                raise ValueError(f"problem {request.problem_id!r} is of no domain that has a teacher; these have one: {known}")
            routes.setdefault(domain, []).append(index)
        return routes

    def reference_logprobs(self, requests: Sequence[TeacherRequest], *, temperature: float) -> list[TeacherScores]:
        """Log-probabilities of the completions under the reference, and nothing else; ``teacher_version`` is the reference's."""
        asked, reference = Asked(temperature=temperature), self._reference.scoring()
        _check(asked, requests, reference)
        return self._scores(reference, requests, asked, self._reference.version)

    def head(self) -> np.ndarray:
        """float32 [V, H']: hidden states times its transpose are the teacher's logits."""
        if len(self._stage.teachers) != 1:
            raise ValueError(f"one output matrix was asked for, but there are teachers for {sorted(self._stage.teachers)}")
        (teacher,) = self._stage.teachers.values()
        return teacher.head().detach().float().cpu().numpy().copy()

    def full_payload(self, num_tokens: int) -> Payload:
        """How the whole distribution of ``num_tokens`` tokens travels; see ``services/teacher/payload.py``."""
        teachers = list(self._stage.teachers.values())
        return cheaper_payload(
            num_tokens, vocabulary=teachers[0].head().shape[0], width=teachers[0].width, one_head=len(teachers) == 1
        )

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write exact float32 weights and the counts. Before the first anchoring only the JSON is written."""
        states, reference = self._stage.kept_states(), self._reference.kept_state()
        record = TeacherRecord(
            anchored=self._stage.anchored,
            teacher_version=self.teacher_version,
            follows=self._stage.follows,
            sets=tuple(states),
            reference_version=None if reference is None else self._reference.version,
        )
        write_state(Path(folder), record, states if reference is None else {**states, REFERENCE: reference})

    def load(self, folder: Path) -> Follow:
        """Undo ``save``; the stage begins again with ``begin_stage`` and ``begin_reference``, anchor ``resume``. Raises
        CheckpointError for a folder that does not fit."""
        record, states = read_state(Path(folder), _set_names, self._policy)
        reference = states.pop(REFERENCE, None)
        follow = self._stage.restore(states, anchored=record.anchored, version=record.teacher_version, follows=record.follows)
        spare = self._stage.release_unanchored() if reference is not None else None
        self._reference.restore(reference, record.reference_version or 0, spare)
        return follow


def _set_names(record: TeacherRecord) -> tuple[str, ...]:
    return record.sets if record.reference_version is None else (*record.sets, REFERENCE)


def _check(asked: Asked, requests: Sequence[TeacherRequest], teacher: Mixture) -> None:
    vocabulary, masked = teacher.head().shape[0], teacher.masked_token_ids
    if not asked.temperature > 0.0:
        raise ValueError(f"temperature is {asked.temperature}; it must be above 0")
    if not 0 <= asked.top_k <= vocabulary - len(masked):
        raise ValueError(f"top_k is {asked.top_k}; allowed is 0 to the {vocabulary - len(masked)} ids that both models know")
    if asked.full not in ("none", "hidden", "logprobs"):
        raise ValueError(f"full is {asked.full!r}; allowed are 'none', 'hidden' and 'logprobs'")
    if asked.full != "none" and masked:
        raise ValueError(
            f"full is {asked.full!r}, but {len(masked)} special ids mean another token to the external teacher, so its distribution over "
            "the policy's whole vocabulary is not known; use a top_k support from the teacher"
        )
    if asked.top_k and any(request.support_ids is not None for request in requests):
        raise ValueError("top_k asks for the teacher's own support, but requests bring theirs")
    foreign = np.fromiter(masked, dtype=np.int64)
    for request in requests:
        if request.support_ids is None:
            continue
        if len(request.support_ids) != len(request.completion_token_ids):
            raise ValueError(f"rollout {request.rollout_id}: support_ids has not one row per completion token")
        counted = ~np.isin(request.completion_token_ids, foreign)  # the other positions have weight 0
        if masked and np.isin(request.support_ids[counted], foreign).any():
            raise ValueError(
                f"rollout {request.rollout_id}: support_ids holds special ids that mean another token to the external teacher; "
                "use a top_k support from the teacher"
            )
