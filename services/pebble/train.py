"""Base training of pebble: cross-entropy on the completions of the corpus, AdamW with warm-up and cosine decay.

A plain loop, since this makes a base model from nothing (hundreds of short samples a step, a decaying rate); jobs train
through ``trainer/learner.py``. The loss of a row is the trainer's own cross-entropy objective. Invariant: how samples
are put into chunks does not change the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from services.pebble.corpus import Corpus, Sample
from trainer.objectives.base import RowInputs
from trainer.objectives.cross_entropy import cross_entropy

CHUNK_TOKENS = 2048
"""Padded tokens of one forward pass: larger ones were slower, out of a core's cache."""
FLOOR = 0.05
"""The rate at the end, as a share of the peak."""
WARMUP, REPORT_EVERY = 30, 50


def learning_rate(step: int, steps: int, *, peak: float, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to ``FLOOR`` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train(
    model, phases: Sequence[tuple[Corpus, int]], *, batch_size: int, peak_lr: float, report: Callable[[str], None]
) -> float:
    """Train in place on each corpus for its number of steps, under one schedule of the learning rate.

    Returns the mean loss (nats per completion token) of the last tenth of the steps.
    """
    steps = sum(length for _, length in phases)
    corpora = [corpus for corpus, length in phases for _ in range(length)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    losses: list[float] = []
    for step, corpus in enumerate(corpora):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=peak_lr, warmup=min(WARMUP, steps // 4 or 1))
        losses.append(accumulate(model, corpus.batch(batch_size)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            report(f"step {step + 1} of {steps}: loss {np.mean(losses[-REPORT_EVERY:]):.4f} nats per token")
    return float(np.mean(losses[-max(1, steps // 10) :]))


def accumulate(model, samples: list[Sample]) -> float:
    """Add the gradient of the batch's token-mean loss; returns that loss in nats."""
    num_tokens = sum(len(completion) for _, completion in samples)
    total = 0.0
    for chunk in chunks(samples, CHUNK_TOKENS):
        loss = completion_losses(model, *padded(chunk)).sum() / num_tokens
        loss.backward()
        total += float(loss.detach())
    return total


def completion_losses(model, ids: torch.Tensor, is_completion: torch.Tensor) -> torch.Tensor:
    """[completion tokens] cross-entropy in nats; the head runs on their rows alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    rows = is_completion[:, 1:]
    logprobs = model.lm_head(hidden[:, :-1][rows]).log_softmax(-1).gather(1, ids[:, 1:][rows].unsqueeze(1)).squeeze(1)
    known = logprobs.detach()
    inputs = RowInputs(policy_logprobs=logprobs, rollout_logprobs=known, token_weights=torch.ones_like(known))
    return cross_entropy(inputs, None).values


def chunks(samples: list[Sample], budget: int) -> list[list[Sample]]:
    """Samples of like lengths together, each chunk within a budget of padded tokens (or a single sample)."""
    parts: list[list[Sample]] = []
    for sample in sorted(samples, key=_length):
        if parts and (len(parts[-1]) + 1) * _length(sample) <= budget:
            parts[-1].append(sample)
        else:
            parts.append([sample])
    return parts


def _length(sample: Sample) -> int:
    return len(sample[0]) + len(sample[1])


def padded(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [B, L] and where completions are [B, L]; causal attention never looks at the padding."""
    longest = max(map(_length, samples))
    ids = np.zeros((len(samples), longest), dtype=np.int64)
    is_completion = np.zeros((len(samples), longest), dtype=bool)
    for row, (prompt, completion) in enumerate(samples):
        end = len(prompt) + len(completion)
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : end] = completion
        is_completion[row, len(prompt) : end] = True
    return torch.from_numpy(ids), torch.from_numpy(is_completion)
