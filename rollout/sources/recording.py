"""Rollouts on disk: one safetensors file a step, with the exact ids and log-probabilities that the engine gave.

Invariants: a file is whole or not there (written beside its name, then renamed); nothing in it is executed when it is read;
the numbers come back bit by bit.
Legend: G groups, N rollouts, P prompt tokens of all groups together, T completion tokens of all rollouts together, K support.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cluster.errors import StageError
from cluster.messages import Completion, RolloutGroup
from rollout.engines.base import EngineSampling

FORMAT = "holdfast-rollouts-1"
SAMPLING_FIELDS = ("temperature", "top_p", "top_k")
"""What a recorded log-probability depends on besides the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGroup:
    """One group as it was sampled; its problem is known by name alone."""

    problem_id: str
    prompt_token_ids: np.ndarray
    rollout_ids: tuple[str, ...]
    completions: tuple[Completion, ...]


def step_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.safetensors"


def write_step(folder: Path, step: int, groups: Sequence[RolloutGroup], sampling: EngineSampling) -> None:
    """Write the groups of a step; a step that is done again after a restart replaces its file."""
    from safetensors.numpy import save

    rollouts = [rollout for group in groups for rollout in group.rollouts]
    completions = [rollout.completion for rollout in rollouts]
    prompts = [group.rollouts[0].prompt_token_ids for group in groups]
    arrays = {
        "prompt_lengths": np.asarray([len(prompt) for prompt in prompts], dtype=np.int64),  # [G]
        "prompt_token_ids": _joined(prompts, np.int32),  # [P]
        "group_sizes": np.asarray([len(group.rollouts) for group in groups], dtype=np.int64),  # [G]
        "lengths": np.asarray([len(completion.token_ids) for completion in completions], dtype=np.int64),  # [N]
        "token_ids": _joined([completion.token_ids for completion in completions], np.int32),  # [T]
        "logprobs": _joined([completion.logprobs for completion in completions], np.float32),  # [T]
    }
    if all(completion.support_ids is not None for completion in completions):
        arrays["support_ids"] = _joined([completion.support_ids for completion in completions], np.int32)  # [T, K]
        arrays["support_logprobs"] = _joined([completion.support_logprobs for completion in completions], np.float32)
    header = {
        "format": FORMAT,
        "sampling": {name: value for name, value in asdict(sampling).items() if name in SAMPLING_FIELDS},
        "problem_ids": [group.problem.problem_id for group in groups],
        "rollout_ids": [rollout.rollout_id for rollout in rollouts],
        "finish_reasons": [completion.finish_reason for completion in completions],
        "policy_versions": [completion.policy_version for completion in completions],
    }
    _write(step_file(folder, step), save(arrays, {"header": json.dumps(header)}))


def read_step(folder: Path, step: int, sampling: EngineSampling) -> list[RecordedGroup]:
    """The groups of a step with policy version 0, for no publication of this job sampled them; of the support the first
    ``support_k`` ids. Raises ``StageError``: ``replay_missing``, ``replay_damaged``, ``replay_sampling_differs``,
    ``replay_support_missing``."""
    file = step_file(folder, step)
    header, arrays = _read(file)
    _check_sampling(file, header, sampling)
    support = _support(file, arrays, sampling.support_k)
    ends = np.cumsum(arrays["lengths"])
    completions = []
    for index, (start, end) in enumerate(zip(ends - arrays["lengths"], ends, strict=True)):
        completions.append(
            Completion(
                token_ids=arrays["token_ids"][start:end],
                logprobs=arrays["logprobs"][start:end],
                finish_reason=header["finish_reasons"][index],
                policy_version=0,
                support_ids=None if support is None else support[0][start:end],
                support_logprobs=None if support is None else support[1][start:end],
            )
        )
    prompts = np.split(arrays["prompt_token_ids"], np.cumsum(arrays["prompt_lengths"])[:-1])
    groups, first = [], 0
    for problem_id, prompt, size in zip(header["problem_ids"], prompts, arrays["group_sizes"].tolist(), strict=True):
        last = first + size
        groups.append(
            RecordedGroup(
                problem_id=problem_id,
                prompt_token_ids=prompt,
                rollout_ids=tuple(header["rollout_ids"][first:last]),
                completions=tuple(completions[first:last]),
            )
        )
        first = last
    return groups


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.ascontiguousarray(np.concatenate(arrays), dtype=dtype)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".writing")
    with open(beside, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    os.replace(beside, file)


def _read(file: Path) -> tuple[dict, dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        known = sorted(other.name for other in file.parent.glob("step-*.safetensors"))
        there = f"there are {len(known)} steps, {known[0]} to {known[-1]}" if known else "there is no recorded step"
        raise StageError(f"{file} does not exist; in {file.parent} {there}", reason="replay_missing")
    try:
        with safe_open(file, framework="numpy") as opened:
            header = json.loads((opened.metadata() or {})["header"])
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']}, allowed is {FORMAT}")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StageError(f"{file} is not a whole recording: {error}", reason="replay_damaged") from error
    return header, arrays


def _check_sampling(file: Path, header: dict, sampling: EngineSampling) -> None:
    """A recorded log-probability means something at its own temperature and truncation alone."""
    ours = {name: getattr(sampling, name) for name in SAMPLING_FIELDS}
    if header["sampling"] != ours:
        raise StageError(
            f"{file} was sampled with {header['sampling']}, the stage has {ours}: the recorded log-probabilities would be wrong",
            reason="replay_sampling_differs",
        )


def _support(file: Path, arrays: dict[str, np.ndarray], support_k: int) -> tuple[np.ndarray, np.ndarray] | None:
    if support_k == 0:
        return None
    recorded = arrays["support_ids"].shape[1] if "support_ids" in arrays else 0
    if recorded < support_k:
        raise StageError(
            f"{file} holds the {recorded} most likely ids of each position, the stage's support needs {support_k}; "
            "record with a support from the rollout of at least that k, or use support_from: teacher",
            reason="replay_support_missing",
        )
    return arrays["support_ids"][:, :support_k], arrays["support_logprobs"][:, :support_k]
