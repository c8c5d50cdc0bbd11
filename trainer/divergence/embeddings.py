"""Texts as vectors: mean-pooled final hidden states of a causal model, or of a sentence-embedding model by path.

Invariant: an embedding is of its own tokens alone; a response is read without its prompt, which would make all responses to it
alike. Cosines of a causal model's raw states lie near 1 (they are anisotropic): compare them with each other, not with 1.
Legend: N texts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from trainer.modeling.packed import pack_sequences
from trainer.modeling.policy_model import PolicyModel

BUDGET_TOKENS = 8192
QUARTILES = (25.0, 50.0, 75.0)


def within(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Runs of texts that hold at most ``budget`` tokens together; one that is longer stands alone."""
    start, held = 0, 0
    for index, length in enumerate(lengths):
        if index > start and held + length > budget:
            yield slice(start, index)
            start, held = index, 0
        held += length
    if start < len(lengths):
        yield slice(start, len(lengths))


@torch.no_grad()
def pooled_states(model: PolicyModel, token_ids: Sequence[np.ndarray], *, budget_tokens: int = BUDGET_TOKENS) -> np.ndarray:
    """float64 [N, H]: mean over a text's own tokens of the final hidden states (after the last norm)."""
    device, found = model.head_weight.device, []
    for part in within([len(ids) for ids in token_ids], budget_tokens):
        # the state at a token is that of the row that predicts the next one; behind the last token stands one that is never read
        pairs = [(ids[:1], np.append(ids[1:], 0)) for ids in token_ids[part]]
        packed = pack_sequences(pairs, device=device)
        found += [states.double().mean(0).cpu().numpy() for states in packed.split_rows(model.hidden_states(packed))]
    return np.stack(found)


class SentenceEmbedder:
    """A sentence-embedding folder (any transformers encoder): mean over tokens of its last hidden states; no remote code."""

    def __init__(self, folder: str | Path, *, batch: int = 32, max_tokens: int = 512):
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        self._model = AutoModel.from_pretrained(str(folder), trust_remote_code=False, use_safetensors=True).eval()
        self._batch, self._max_tokens = batch, max_tokens

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [N, H]; texts longer than ``max_tokens`` are cut."""
        found = []
        for start in range(0, len(texts), self._batch):
            part = list(texts[start : start + self._batch])
            inputs = self._tokenizer(part, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt")
            states, mask = self._model(**inputs).last_hidden_state.double(), inputs["attention_mask"][..., None].double()
            found.append(((states * mask).sum(1) / mask.sum(1).clamp(min=1.0)).numpy())
        return np.concatenate(found)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N, H] twice -> [N], pair by pair. An empty text may have a zero embedding: two of them are alike (1), one is like no other (0)."""
    if first.shape != second.shape:
        raise ValueError(f"embeddings of {first.shape} and {second.shape} are no pairs")
    empty = [np.linalg.norm(side, axis=1) == 0.0 for side in (first, second)]
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    lengths[lengths == 0.0] = 1.0
    found = np.clip((first * second).sum(axis=1) / lengths, -1.0, 1.0)  # rounding may leave the range
    return np.where(empty[0] & empty[1], 1.0, found)


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, QUARTILES)
    return float(low), float(middle), float(high)
