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
    """A sentence-embedding folder (any text encoder of transformers, of an encoder-decoder its encoder): mean over tokens of its last
    hidden states, in float32; no remote code. What else a batch holds changes nothing of an embedding."""

    def __init__(self, folder: str | Path, *, batch: int = 32, max_tokens: int = 512):
        from transformers import AutoModel, AutoTokenizer, PreTrainedModel

        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        model = AutoModel.from_pretrained(str(folder), trust_remote_code=False, use_safetensors=True, dtype=torch.float32).eval()
        encoder = model.get_encoder()  # of a model that is one already: itself, or its layers without their embeddings
        self._model = encoder if isinstance(encoder, PreTrainedModel) else model
        self._batch, self._max_tokens = batch, min(max_tokens, _positions(model))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [N, H]; texts longer than ``max_tokens``, or than the model has positions for, are cut; one of no tokens is 0."""
        rows = self._tokenizer(list(texts), padding=False, truncation=True, max_length=self._max_tokens)["input_ids"]
        return np.concatenate([self._means(rows[start : start + self._batch]) for start in range(0, len(rows), self._batch)])

    @torch.no_grad()
    def _means(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        # padded here: some tokenizers have no token for it, some pad on the left, where it moves the positions. Any id will do, it is masked
        ids, mask = (torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.int64) for _ in range(2))
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[place, : len(row)] = 1
        read = mask.clone()
        read[:, 0] = 1  # of a row that is masked whole a model makes no numbers
        states = self._model(input_ids=ids, attention_mask=read).last_hidden_state.double()
        return ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)).numpy()


def _positions(model: torch.nn.Module) -> int:
    """How many tokens a model has positions for; where its table keeps a row for padding (RoBERTa, MPNet) they begin behind that."""
    stated = getattr(model.config, "max_position_embeddings", None)
    found = [stated] if isinstance(stated, int) and stated > 0 else []
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            found.append(module.num_embeddings - module.padding_idx - 1)
    return min(found, default=1 << 30)


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
