"""One domain's probe prompts over a job: how far the policy's answers are from the base model's and from the stage's start.

    probes = ProbeDrift(drift, prompts, base_completions, temperature=1.0)
    probes.begin_stage(start_model, start_completions)
    probes.measure(policy_model, completions, cut)["base"]["kl_policy_base"]

Estimator: every KL is a mean over tokens of completions that its *first* argument sampled, which estimates the KL of whole sequences
without bias, per token (``response_drift.py``): four figures need three sets of completions. ``temperature`` is the one that they
were sampled at: both models' logits are divided by it, since it is those distributions that answered. Where ``top_p`` cut the
sampling the completions are not quite the models' own, and the figures are means over prefixes that the cut sampling visits.

Invariant: a figure whose completions there are none of is None; nothing else is put in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.divergence.completion_statistics import completion_statistics
from trainer.divergence.embeddings import cosines, quartiles
from trainer.divergence.response_drift import ResponseDrift, States
from trainer.divergence.row_kl import RowKL
from trainer.modeling.policy_model import PolicyModel

Completions = Sequence[np.ndarray]
COSINE_DIGITS = 4


@dataclass(frozen=True, slots=True)
class PairStates:
    """One model's states by (place of the prompt, bytes of the completion)."""

    model: PolicyModel
    rows: dict[tuple[int, bytes], torch.Tensor]

    def of(self, completions: Completions) -> torch.Tensor:
        return torch.cat([self.rows[place, ids.tobytes()] for place, ids in enumerate(completions)])


class ProbeDrift:
    """``prompts`` and all completions are token ids, pair by pair."""

    def __init__(self, drift: ResponseDrift, prompts: Completions, base: Completions | None, *, temperature: float):
        self._drift, self._prompts, self._temperature = drift, prompts, temperature
        self._base = base
        self._base_embeddings = None if base is None else self._embed(base, {})
        self.begin_stage(drift.base, base)

    def begin_stage(self, start: PolicyModel, completions: Completions | None) -> None:
        """``start`` are the stage's first weights; the base's own where the first stage begins."""
        self._start, self._start_completions = start, completions
        self._start_embeddings = self._base_embeddings if self._starts_at_base else None
        self._base_start: dict[str, float | None] | None = {"kl_base_start": 0.0, "kl_start_base": 0.0} if self._starts_at_base else None

    @property
    def _starts_at_base(self) -> bool:
        return self._start is self._drift.base

    def measure(self, policy: PolicyModel, completions: Completions, cut: np.ndarray, *, each: bool = False) -> dict[str, Any]:
        """``base``, ``start``, ``base_start``, ``policy`` of the record; ``each``: with every prompt's cosine to the base's answer."""
        base, start = self._drift.base, self._start
        first = self._base_start is None
        own = self._states(policy, completions, self._base, self._start_completions)
        by_base = self._states(base, completions, self._base, self._start_completions if first else None)
        by_start = by_base if self._starts_at_base else self._states(start, completions, self._start_completions, self._base if first else None)
        if first:
            self._base_start = {
                "kl_base_start": self._kl(self._base, by_base, by_start),
                "kl_start_base": self._kl(self._start_completions, by_start, by_base),
            }
        against_base = self._compare(completions, by_base, own)
        embedded, base_embeddings, start_embeddings = self._embeddings(completions)
        found: dict[str, Any] = {
            "base": {
                "kl_policy_base": float(against_base.second_first.mean()),
                "kl_base_policy": self._kl(self._base, by_base, own),
                "similarity": _similarity(base_embeddings, embedded),
            },
            "start": {
                "kl_policy_start": self._kl(completions, own, by_start),
                "kl_start_policy": self._kl(self._start_completions, by_start, own),
                "similarity": _similarity(start_embeddings, embedded),
            },
            "base_start": self._base_start,
            "policy": {"entropy": float(against_base.second_entropies.mean()), "cut_share": float(np.mean(cut))} | completion_statistics(completions),
        }
        if each and base_embeddings is not None:
            found["base"]["cosines"] = [round(float(value), COSINE_DIGITS) for value in cosines(base_embeddings, embedded)]
        return found

    # -- states ------------------------------------------------------------------------------------------------------

    def _states(self, model: PolicyModel, *sets: Completions | None) -> PairStates:
        """One forward over everything the model is asked about: an answer that two models gave to a prompt counts once."""
        pairs = {(place, ids.tobytes()): ids for completions in sets if completions is not None for place, ids in enumerate(completions)}
        states = self._drift.states(model, [self._prompts[place] for place, _ in pairs], list(pairs.values()))
        rows = torch.cat(states.hidden).split([len(ids) for ids in pairs.values()])
        return PairStates(model, dict(zip(pairs, rows, strict=True)))

    def _compare(self, completions: Completions, first: PairStates, second: PairStates) -> RowKL:
        ids = torch.from_numpy(np.concatenate(completions).astype(np.int64))
        sides = [States(side.model, (side.of(completions),), (ids,)) for side in (first, second)]
        return self._drift.compare(*sides, temperature=self._temperature)

    def _kl(self, completions: Completions | None, sampler: PairStates, other: PairStates) -> float | None:
        """KL(sampler||other) per token, on the sampler's own completions."""
        return None if completions is None else float(self._compare(completions, sampler, other).first_second.mean())

    # -- embeddings --------------------------------------------------------------------------------------------------

    def _embeddings(self, completions: Completions) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Of the policy's, the base's and the stage start's answers."""
        known: dict[bytes, np.ndarray] = {}
        if self._base is not None:
            known |= zip((ids.tobytes() for ids in self._base), self._base_embeddings, strict=True)
        if self._start_embeddings is None and self._start_completions is not None:
            self._start_embeddings = self._embed(self._start_completions, known)
        if self._start_completions is not None:
            known |= zip((ids.tobytes() for ids in self._start_completions), self._start_embeddings, strict=True)
        return self._embed(completions, known), self._base_embeddings, self._start_embeddings

    def _embed(self, completions: Completions, known: dict[bytes, np.ndarray]) -> np.ndarray:
        """[N, H]; only what is not known already is embedded."""
        new = {ids.tobytes(): ids for ids in completions if ids.tobytes() not in known}
        if new:
            known = known | dict(zip(new, self._drift.embed(list(new.values())), strict=True))
        return np.stack([known[ids.tobytes()] for ids in completions])


def _similarity(reference: np.ndarray | None, embedded: np.ndarray) -> dict[str, float] | None:
    """Of the answers to the same prompt, pair by pair."""
    if reference is None:
        return None
    found = cosines(reference, embedded)
    low, middle, high = quartiles(found)
    return {"mean": float(found.mean()), "q25": low, "median": middle, "q75": high}
