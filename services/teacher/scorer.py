"""The teacher: float32 weights that follow the policy by a strategy, and the scores that they give.

Plain PyTorch, no Ray. Legend: T completion tokens, K support size, V vocabulary, H hidden size. Invariant: the weights are
a function of the anchor, the strategy and the published snapshots, each applied exactly once, in order; every score says
which update they had and which token ids were scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cluster.errors import TeacherError, WeightTransferError
from cluster.messages import TeacherRequest, TeacherScores, token_digest
from cluster.transfer.snapshot import read_snapshot
from services.teacher.canary import Follow, canary_of
from services.teacher.strategies import STRATEGIES, State
from services.weights.checkpoints import CheckpointError
from trainer import state_files
from trainer.modeling.packed import pack_sequences
from trainer.modeling.policy_model import PolicyModel
from trainer.modeling.scoring import RowScores, score_rows

Anchor = Literal["keep", "resume", "policy", "base"]

WEIGHTS_FILE = "teacher.safetensors"
RECORD_FILE = "teacher.json"
STATE_FORMAT = 1
TIED_HEAD = "lm_head.weight"
BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}
"""Tokens of one forward pass, prompts included; a longer sequence goes alone."""


class TeacherScorer:
    """One process's teacher. ``dtype`` is that of the forward pass; the weights that follow are float32 always."""

    def __init__(
        self,
        model_folder: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int | None = None,
        batch_tokens: int | None = None,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self._folder = Path(model_folder)
        self._device = torch.device(device)
        self._batch_tokens = batch_tokens or BATCH_TOKENS[self._device.type]
        self._model = PolicyModel.load(self._folder, dtype=getattr(torch, dtype)).to(self._device).requires_grad_(False)
        self._parameters = {name: parameter.data for name, parameter in self._model.model.named_parameters()}
        self._state: State = self._float32_state()
        self._spec: Any = None
        self._anchored = False
        self.teacher_version = 0
        """Number of the last update that was followed; counts the policy's optimizer steps over all stages."""

    def _float32_state(self) -> State:
        """The tensors that follow: the model's own where it is float32, a copy of the base model's otherwise."""
        if all(parameter.dtype == torch.float32 for parameter in self._parameters.values()):
            return self._parameters
        return {name: tensor.to(self._device) for name, tensor in self._base_weights().items()}

    def _base_weights(self) -> State:
        return {name: parameter.detach() for name, parameter in PolicyModel.load(self._folder).model.named_parameters()}

    # -- weights -----------------------------------------------------------------------------------------------------

    def begin_stage(self, teacher: Any, *, anchor: Anchor, snapshot: Path | None = None, update: int | None = None) -> Follow:
        """Take a stage's strategy and put the weights where it begins.

        ``policy``: at ``snapshot``; ``base``: at the model folder; ``keep``: as they are (the base model's before the first
        anchoring); ``resume``: as they are, and they must be at ``update`` already, or it is ``teacher_stale``. ``update``
        is the policy's update count now. Updates made while no stage had a teacher are not followed: a kept teacher stays.
        """
        if teacher.kind not in STRATEGIES:
            raise ValueError(f"teacher kind {teacher.kind!r} is unknown; allowed are {sorted(STRATEGIES)}")
        update = self.teacher_version if update is None else update
        if anchor == "policy":
            if snapshot is None:
                raise ValueError("anchor 'policy' needs the snapshot to anchor at")
            self._adopt(STRATEGIES[teacher.kind].initial(self._read(snapshot)))
        elif anchor == "base":
            self._adopt(STRATEGIES[teacher.kind].initial(self._base_weights()))
        else:
            self._keep(anchor, update)
        self._spec, self._anchored, self.teacher_version = teacher, True, update
        return self._report()

    def _keep(self, anchor: Anchor, update: int) -> None:
        if anchor == "resume" and not (self._anchored and self.teacher_version == update):
            found = f"at update {self.teacher_version}" if self._anchored else "not restored"
            raise TeacherError(f"the stage resumes at update {update}, but the teacher is {found}", reason="teacher_stale")
        if self._anchored and self.teacher_version > update:
            if update > 0:
                raise TeacherError(
                    f"the teacher has followed update {self.teacher_version}, the policy is at {update}: restore the teacher "
                    "from the policy's checkpoint first",
                    reason="teacher_stale",
                )
            self._adopt(self._base_weights())  # the policy began again from the base model, and so does its teacher

    def follow(self, update: int, snapshot: Path) -> Follow:
        """Follow publication number ``update``; the last number again changes nothing.

        Raises TeacherError ``teacher_stale`` for an older number, and for a skipped one where the strategy must see each.
        """
        if self._spec is None:
            raise TeacherError("the teacher was told to follow before a stage began", reason="teacher_stale")
        if update == self.teacher_version:
            return self._report()
        strategy = STRATEGIES[self._spec.kind]
        if update < self.teacher_version or (strategy.sees_every_update and update != self.teacher_version + 1):
            raise TeacherError(
                f"the {self._spec.kind} teacher is at update {self.teacher_version} and cannot follow update {update}",
                reason="teacher_stale",
                details={"teacher_version": self.teacher_version, "update": update},
            )
        self._adopt(strategy.update(self._state, self._read(snapshot), self._spec))
        self.teacher_version = update
        return self._report()

    def _read(self, snapshot: Path) -> State:
        """The policy's float32 masters. Raises WeightTransferError unless every tensor is there as it must be."""
        policy = read_snapshot(Path(snapshot))
        extra = set(policy) - set(self._state) - {TIED_HEAD}
        wrong = [
            name
            for name, tensor in self._state.items()
            if name not in policy or policy[name].shape != tensor.shape or policy[name].dtype != torch.float32
        ]
        if extra or wrong:
            raise WeightTransferError(
                f"snapshot {Path(snapshot).name} is not the policy's float32 masters: missing or of another shape or dtype "
                f"{sorted(wrong)[:3]}, unknown {sorted(extra)[:3]}",
                reason="publication_incomplete",
            )
        return {name: policy[name] for name in self._state}

    def _adopt(self, state: State) -> None:
        """Make ``state`` the teacher's and let the model score with it."""
        for name, tensor in self._state.items():
            if state[name] is not tensor:
                tensor.copy_(state[name])
            if self._parameters[name] is not tensor:
                self._parameters[name].copy_(tensor)

    def _report(self) -> Follow:
        return Follow(teacher_version=self.teacher_version, canary=canary_of(self._state))

    # -- scores ------------------------------------------------------------------------------------------------------

    def head(self) -> np.ndarray:
        """float32 [V, H]: hidden states times its transpose are the teacher's logits."""
        return self._model.head_weight.detach().float().cpu().numpy().copy()

    def score(
        self, requests: Sequence[TeacherRequest], *, temperature: float, top_k: int = 0, hidden: bool = False
    ) -> list[TeacherScores]:
        """Teacher-forced scores in the order of the requests, at ``temperature``, over the full vocabulary.

        The support is each request's own ``support_ids`` where it has some, or the teacher's ``top_k`` most likely ids.
        ``hidden`` adds the final hidden states [T, H]. Raises TeacherError ``teacher_diverged`` for scores that are not
        finite.
        """
        self._check(requests, temperature, top_k)
        results: dict[int, TeacherScores] = {}
        for batch in self._batches(requests):
            results.update(zip(batch, self._score_batch([requests[index] for index in batch], temperature, top_k, hidden), strict=True))
        return [results[index] for index in range(len(requests))]

    def _check(self, requests: Sequence[TeacherRequest], temperature: float, top_k: int) -> None:
        vocabulary = self._model.head_weight.shape[0]
        if not temperature > 0.0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        if not 0 <= top_k <= vocabulary:
            raise ValueError(f"top_k is {top_k}; allowed is 0 to the vocabulary's {vocabulary}")
        if top_k and any(request.support_ids is not None for request in requests):
            raise ValueError("top_k asks for the teacher's own support, but requests bring theirs")
        for request in requests:
            if request.support_ids is not None and len(request.support_ids) != len(request.completion_token_ids):
                raise ValueError(f"rollout {request.rollout_id}: support_ids has not one row per completion token")

    def _batches(self, requests: Sequence[TeacherRequest]) -> Iterator[list[int]]:
        """Indices of requests, longest first, in runs of one support size and at most ``batch_tokens`` tokens."""

        def shape(index: int) -> tuple[int, int]:
            request = requests[index]
            width = 0 if request.support_ids is None else request.support_ids.shape[1]
            return width, len(request.prompt_token_ids) + len(request.completion_token_ids)

        batch: list[int] = []
        tokens = 0
        for index in sorted(range(len(requests)), key=shape, reverse=True):
            width, length = shape(index)
            if batch and (tokens + length > self._batch_tokens or width != shape(batch[0])[0]):
                yield batch
                batch, tokens = [], 0
            batch.append(index)
            tokens += length
        if batch:
            yield batch

    @torch.no_grad()
    def _score_batch(
        self, requests: list[TeacherRequest], temperature: float, top_k: int, hidden: bool
    ) -> Iterator[TeacherScores]:
        packed = pack_sequences([(r.prompt_token_ids, r.completion_token_ids) for r in requests], device=self._device)
        given = None
        if requests[0].support_ids is not None:
            given = torch.from_numpy(np.concatenate([r.support_ids for r in requests]).astype(np.int64)).to(self._device)
        states = self._model.hidden_states(packed)
        rows = score_rows(states, self._model.head_weight, packed.target_ids, temperature=temperature, support_ids=given, top_k=top_k)
        if not torch.isfinite(rows.logprobs).all():
            raise TeacherError(f"the teacher at update {self.teacher_version} gives log-probabilities that are not finite", reason="teacher_diverged")
        return self._answers(requests, packed, rows, states if hidden else None, own_support=top_k > 0)

    def _answers(self, requests, packed, rows: RowScores, states: Tensor | None, *, own_support: bool) -> Iterator[TeacherScores]:
        """One answer per sequence, as arrays of its own; ids that the caller gave are not sent back."""
        split = packed.split_rows
        nothing: list[None] = [None] * len(requests)
        columns = zip(
            requests,
            split(packed.target_ids),
            split(rows.logprobs),
            split(rows.support_ids) if own_support else nothing,
            split(rows.support_logprobs) if rows.support_logprobs is not None else nothing,
            split(states) if states is not None else nothing,
            strict=True,
        )
        for request, scored, logprobs, support_ids, support_logprobs, hidden in columns:
            yield TeacherScores(
                rollout_id=request.rollout_id,
                problem_id=request.problem_id,
                teacher_version=self.teacher_version,
                completion_digest=token_digest(_array(scored, np.int32)),
                logprobs=_array(logprobs, np.float32),
                support_ids=_array(support_ids, np.int32),
                support_logprobs=_array(support_logprobs, np.float32),
                hidden=_array(hidden, np.float32),
            )

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write exact float32 weights and the update count. Before the first anchoring only the JSON is written."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._anchored:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._state.items()}
            state_files.write_tensors(folder / WEIGHTS_FILE, tensors)
        record = {"format": STATE_FORMAT, "anchored": self._anchored, "teacher_version": self.teacher_version}
        state_files.write_json(folder / RECORD_FILE, record)

    def load(self, folder: Path) -> Follow:
        """Undo ``save``; the stage begins again with ``begin_stage``. Raises CheckpointError for a folder that does not fit."""
        folder = Path(folder)
        try:
            record = json.loads((folder / RECORD_FILE).read_text())
            weights = dict(state_files.read_tensors(folder / WEIGHTS_FILE)) if record["anchored"] else self._base_weights()
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"the teacher's state in {folder} cannot be read: {error}") from error
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
        if record["format"] != STATE_FORMAT or shapes != {name: (tuple(t.shape), torch.float32) for name, t in self._state.items()}:
            raise CheckpointError(f"the teacher's state in {folder} is of another model or format")
        self._adopt(weights)
        self._spec, self._anchored, self.teacher_version = None, record["anchored"], record["teacher_version"]
        return self._report()


def _array(values: Tensor | None, dtype: type) -> np.ndarray | None:
    """An array of its own: a view would carry the whole batch to the receiver."""
    return None if values is None else values.cpu().numpy().astype(dtype, copy=True)
