"""How far a policy's answers on fixed probe prompts have moved from the base model's, or from the stage's start.

    drift = ResponseDrift("models/base")
    drift.measure(prompts, completions, "runs/x/stages/0-sort/policy", sampled_by="policy")

Estimator: completions that one side sampled are scored by both; at each of their prefixes both KLs are exact over the full
vocabulary, and their mean over tokens is nats per token. Only the KL whose first argument sampled estimates a KL of whole
sequences without bias (per token): KL(policy||base) on the policy's completions, KL(base||policy) on the base's. The other one
is a mean over prefixes that the other side sampled; ``unbiased`` names the first.

Invariants: identical models give exactly 0 in both directions. "base" stands for whatever the policy is measured against.
What is held: the base in host memory, in ``dtype``, for as long as the object lives (on a CPU that is where it runs); a policy that
is loaded by path for as long as the caller keeps it; on another device as many models as have room there, one at a time at
least, from a forward until ``release``; of completions the final hidden states [R, H] of one set at a time, in host memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file

from trainer.divergence.completion_statistics import completion_statistics
from trainer.divergence.embeddings import BUDGET_TOKENS, SentenceEmbedder, cosines, pooled_states, quartiles, within
from trainer.divergence.placement import Placement
from trainer.divergence.row_kl import RowKL, row_kl
from trainer.modeling.packed import pack_sequences
from trainer.modeling.policy_model import PolicyModel

Policy = PolicyModel | str | Path
"""A model in memory, a Hugging Face folder, or a snapshot file of one of the base's architecture."""
Sampler = Literal["policy", "base"]


@dataclass(frozen=True, slots=True)
class States:
    """What one model makes of pairs of prompt and completion."""

    model: PolicyModel
    hidden: tuple[torch.Tensor, ...]
    """[R, H] in host memory, part by part, R completion tokens."""
    token_ids: tuple[torch.Tensor, ...]


class ResponseDrift:
    """Keeps the base model loaded; a policy is loaded for one call unless it is handed in as a model."""

    def __init__(
        self,
        base_folder: str | Path,
        *,
        embedding_folder: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        budget_tokens: int = BUDGET_TOKENS,
    ):
        self._folder, self._dtype, self._device, self._budget = Path(base_folder), dtype, torch.device(device), budget_tokens
        self.base = PolicyModel.load(base_folder, dtype=dtype)
        self._placement = Placement(self._device)
        self._embedder = SentenceEmbedder(embedding_folder) if embedding_folder is not None else None
        self._tokenizer = None

    def load(self, policy: Policy) -> PolicyModel:
        """Raises ValueError where a snapshot lacks a parameter of the base's architecture or has another shape for it."""
        if isinstance(policy, PolicyModel):
            return policy
        if not str(policy).endswith(".safetensors"):
            return PolicyModel.load(policy, dtype=self._dtype)
        model, tensors = PolicyModel.empty(self._folder, dtype=self._dtype), load_file(str(policy))
        with torch.no_grad():
            for name, parameter in model.model.named_parameters():
                if name not in tensors or tensors[name].shape != parameter.shape:
                    raise ValueError(f"snapshot {policy}: parameter {name} is missing or is not of shape {tuple(parameter.shape)}")
                parameter.copy_(tensors[name])
        return model

    def release(self) -> None:
        """Give the device back to the learner; the models stay in host memory."""
        self._placement.release()

    def measure(
        self,
        prompts: Sequence[np.ndarray],
        completions: Sequence[np.ndarray],
        policy: Policy,
        *,
        sampled_by: Sampler = "policy",
        against: Policy | None = None,
        temperature: float = 1.0,
    ) -> dict[str, float | str | None]:
        """KLs in nats per token, entropy, lengths, distinct-n. ``against`` is the stage's start; None = the base model.

        ``prompts`` and ``completions`` are token ids, pair by pair, none empty; ``sampled_by`` says whose completions they are.
        """
        _hold_to_pairs(prompts, completions, sampled_by)
        reference, model = self.base if against is None else self.load(against), self.load(policy)
        rows = self.compare(self.states(reference, prompts, completions), self.states(model, prompts, completions), temperature=temperature)
        base_policy, policy_base = rows.first_second, rows.second_first
        log_ratio = rows.second_logprobs - rows.first_logprobs
        return {
            "sampled_by": sampled_by,
            "unbiased": "kl_policy_base" if sampled_by == "policy" else "kl_base_policy",
            "kl_base_policy": float(base_policy.mean()),
            "kl_policy_base": float(policy_base.mean()),
            "sampled_log_ratio": float(log_ratio.mean() if sampled_by == "policy" else -log_ratio.mean()),
            "policy_entropy": float(rows.second_entropies.mean()),
            "num_tokens": float(len(log_ratio)),
        } | completion_statistics(completions)

    def similarity(self, base_completions: Sequence[np.ndarray], policy_completions: Sequence[np.ndarray]) -> dict[str, float]:
        """Cosine of the embeddings of two answers to the same prompt, pair by pair: mean and quartiles."""
        found = cosines(self.embed(base_completions), self.embed(policy_completions))
        low, middle, high = quartiles(found)
        return {"mean": float(found.mean()), "q25": low, "median": middle, "q75": high, "num_pairs": float(len(found))}

    def embed(self, token_ids: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [N, H] of completions or prompts: the base's pooled states, or the sentence-embedding model's.

        Equal ones are embedded once: beside other texts rounding would tell them apart.
        """
        different = {np.asarray(ids).tobytes(): ids for ids in token_ids}
        rows = dict(zip(different, self._embed(list(different.values())), strict=True))
        return np.stack([rows[np.asarray(ids).tobytes()] for ids in token_ids])

    def _embed(self, token_ids: Sequence[np.ndarray]) -> np.ndarray:
        if self._embedder is None:
            self._placement.use(self.base)
            return pooled_states(self.base, token_ids, budget_tokens=self._budget)
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(str(self._folder), trust_remote_code=False)
        return self._embedder.embed([self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True) for ids in token_ids])

    @torch.no_grad()
    def states(self, model: PolicyModel, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray]) -> States:
        """One forward over the pairs; both sides of a comparison are made of the same pairs."""
        device, hidden, token_ids = self._placement.use(model), [], []
        for part in within([len(prompt) + len(ids) for prompt, ids in zip(prompts, completions, strict=True)], self._budget):
            packed = pack_sequences(list(zip(prompts[part], completions[part], strict=True)), device=device)
            hidden.append(model.hidden_states(packed).cpu())
            token_ids.append(packed.target_ids.cpu())
        return States(model, tuple(hidden), tuple(token_ids))

    def compare(self, first: States, second: States, *, temperature: float = 1.0) -> RowKL:
        """Row by row over all pairs, in host memory; ``first`` and ``second`` are of the same pairs."""
        rows = []
        for one, other, ids in zip(first.hidden, second.hidden, first.token_ids, strict=True):
            device = self._placement.use(second.model)
            sides = [(hidden.to(device), side.model.head_weight.to(device)) for hidden, side in ((one, first), (other, second))]
            rows.append(row_kl(*sides, ids.to(device), temperature=temperature))
        return RowKL(**{name: torch.cat([getattr(part, name).cpu() for part in rows]) for name in RowKL.__dataclass_fields__})


def _hold_to_pairs(prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray], sampled_by: str) -> None:
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(f"there are {len(prompts)} prompts and {len(completions)} completions; they must be pairs, one or more")
    if sampled_by not in ("policy", "base"):
        raise ValueError(f"sampled_by is {sampled_by!r}; allowed are 'policy' and 'base'")
