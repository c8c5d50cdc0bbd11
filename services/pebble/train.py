"""Base training of pebble: cross-entropy on the completions of the corpus, AdamW with warm-up and cosine decay.

A plain loop, since this makes a base model from nothing (hundreds of samples a step, a decaying rate); jobs train through
``trainer/learner.py``. Both are tested against the same cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from services.pebble.corpus import Corpus

IGNORED = -100
MICRO_BATCH = 32


def base_config(vocabulary_size: int, eos_token_id: int, pad_token_id: int):
    """About 0.8M parameters in Qwen3's architecture, with tied embeddings."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=vocabulary_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        eos_token_id=eos_token_id,
        bos_token_id=None,
        pad_token_id=pad_token_id,
        attention_bias=False,
        use_cache=True,
    )


def learning_rate(step: int, steps: int, *, peak: float, warmup: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train(model, corpus: Corpus, *, steps: int, batch_size: int, peak_lr: float, report: Callable[[str], None]) -> float:
    """Train in place; returns the mean loss (nats per completion token) of the last tenth of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=peak_lr, warmup=min(50, steps // 4 or 1))
        loss = accumulate(model, corpus.batch(batch_size))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            report(f"step {step + 1} of {steps}: loss {np.mean(losses[-50:]):.4f} nats per token")
    return float(np.mean(losses[-max(1, steps // 10) :]))


def accumulate(model, samples: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Backward over length-sorted micro-batches, so that short samples are not padded to the longest; the gradient is that
    of the mean over all completion tokens of the batch."""
    ordered = sorted(samples, key=lambda sample: len(sample[0]) + len(sample[1]))
    total, count = 0.0, sum(len(completion) for _, completion in samples)
    for start in range(0, len(ordered), MICRO_BATCH):
        part = ordered[start : start + MICRO_BATCH]
        share = sum(len(completion) for _, completion in part) / count
        loss = completion_loss(model, *padded(part)) * share
        loss.backward()
        total += float(loss.detach())
    return total


def completion_loss(model, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over completion tokens; the head runs on their rows alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    rows = labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][rows])
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][rows])


def padded(samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [B, L] and labels [B, L]; causal attention never looks at the padding."""
    longest = max(len(prompt) + len(completion) for prompt, completion in samples)
    ids = np.zeros((len(samples), longest), dtype=np.int64)
    labels = np.full((len(samples), longest), IGNORED, dtype=np.int64)
    for row, (prompt, completion) in enumerate(samples):
        end = len(prompt) + len(completion)
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : end] = completion
        labels[row, len(prompt) : end] = completion
    return torch.from_numpy(ids), torch.from_numpy(labels)
