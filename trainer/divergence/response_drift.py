"""How far a policy's answers on fixed probe prompts have moved from the base model's, or from the stage's start.

    drift = ResponseDrift("models/base")
    drift.measure(prompts, completions, "runs/x/stages/0-sort/policy", sampled_by="policy")

Estimator: completions that one side sampled are scored by both; at each of their prefixes both KLs are exact over the full
vocabulary, and their mean over tokens is nats per token. Only the KL whose first argument sampled estimates a KL of whole
sequences without bias (per token): KL(policy||base) on the policy's completions, KL(base||policy) on the base's. The other one
is a mean over prefixes that the other side sampled; ``unbiased`` names the first.

Invariant: identical models give exactly 0 in both directions. "base" stands for whatever the policy is measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file

from trainer.divergence.completion_statistics import completion_statistics
from trainer.divergence.embeddings import BUDGET_TOKENS, SentenceEmbedder, cosines, pooled_states, quartiles, within
from trainer.divergence.row_kl import RowKL, row_kl
from trainer.modeling.packed import pack_sequences
from trainer.modeling.policy_model import PolicyModel

Policy = PolicyModel | str | Path
"""A model in memory, a Hugging Face folder, or a snapshot file of one of the base's architecture."""
Sampler = Literal["policy", "base"]


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
        self.base = PolicyModel.load(base_folder, dtype=dtype).to(self._device)
        self._embedder = SentenceEmbedder(embedding_folder) if embedding_folder is not None else None
        self._tokenizer = None

    def load(self, policy: Policy) -> PolicyModel:
        """Raises ValueError where a snapshot lacks a parameter of the base's architecture or has another shape for it."""
        if isinstance(policy, PolicyModel):
            return policy
        if not str(policy).endswith(".safetensors"):
            return PolicyModel.load(policy, dtype=self._dtype).to(self._device)
        model, tensors = PolicyModel.empty(self._folder, dtype=self._dtype), load_file(str(policy))
        with torch.no_grad():
            for name, parameter in model.model.named_parameters():
                if name not in tensors or tensors[name].shape != parameter.shape:
                    raise ValueError(f"snapshot {policy}: parameter {name} is missing or is not of shape {tuple(parameter.shape)}")
                parameter.copy_(tensors[name])
        return model.to(self._device)

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
        rows = [self._rows(reference, model, prompts[part], completions[part], temperature) for part in self._parts(prompts, completions)]
        base_policy, policy_base = (_joined(rows, name) for name in ("first_second", "second_first"))
        log_ratio = _joined(rows, "second_logprobs") - _joined(rows, "first_logprobs")
        return {
            "sampled_by": sampled_by,
            "unbiased": "kl_policy_base" if sampled_by == "policy" else "kl_base_policy",
            "kl_base_policy": float(base_policy.mean()),
            "kl_policy_base": float(policy_base.mean()),
            "sampled_log_ratio": float(log_ratio.mean() if sampled_by == "policy" else -log_ratio.mean()),
            "policy_entropy": float(_joined(rows, "second_entropies").mean()),
            "num_tokens": float(len(log_ratio)),
        } | completion_statistics(completions)

    def similarity(self, base_completions: Sequence[np.ndarray], policy_completions: Sequence[np.ndarray]) -> dict[str, float]:
        """Cosine of the embeddings of two answers to the same prompt, pair by pair: mean and quartiles."""
        found = cosines(self.embed(base_completions), self.embed(policy_completions))
        low, middle, high = quartiles(found)
        return {"mean": float(found.mean()), "q25": low, "median": middle, "q75": high, "num_pairs": float(len(found))}

    def embed(self, token_ids: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [N, H] of completions or prompts: the base's pooled states, or the sentence-embedding model's."""
        if self._embedder is None:
            return pooled_states(self.base, token_ids, budget_tokens=self._budget)
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(str(self._folder), trust_remote_code=False)
        return self._embedder.embed([self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True) for ids in token_ids])

    def _parts(self, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray]) -> list[slice]:
        return list(within([len(prompt) + len(ids) for prompt, ids in zip(prompts, completions, strict=True)], self._budget))

    @torch.no_grad()
    def _rows(self, reference: PolicyModel, model: PolicyModel, prompts, completions, temperature: float) -> RowKL:
        packed = pack_sequences(list(zip(prompts, completions, strict=True)), device=self._device)
        sides = [(side.hidden_states(packed), side.head_weight) for side in (reference, model)]
        return row_kl(*sides, packed.target_ids, temperature=temperature)


def _joined(rows: Sequence[RowKL], name: str) -> torch.Tensor:
    return torch.cat([getattr(part, name) for part in rows])


def _hold_to_pairs(prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray], sampled_by: str) -> None:
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(f"there are {len(prompts)} prompts and {len(completions)} completions; they must be pairs, one or more")
    if sampled_by not in ("policy", "base"):
        raise ValueError(f"sampled_by is {sampled_by!r}; allowed are 'policy' and 'base'")
