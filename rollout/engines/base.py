"""What a step needs from an engine: sampling settings, and the protocol that vLLM and the scripted engine follow.

Invariant: one completion per (request, child index), in the order of the requests, with the policy version
that the engine held while it sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.messages import Completion, GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSampling:
    """How to sample, for a whole batch of requests; seeds belong to the requests."""

    temperature: float
    """Above 0; logits are divided by it, and the log-probabilities that come back are at this temperature."""
    top_p: float
    """1.0 samples from the full distribution; below it the returned log-probabilities are normalised over the nucleus."""
    max_tokens: int
    """Completion tokens at most, the end-of-sequence id included."""
    top_k: int | None = None
    """Sample from the k most likely ids only, over which the returned log-probabilities are normalised; None = all ids."""
    support_k: int = 0
    """Return the policy's ``support_k`` most likely ids and their log-probabilities at every position; 0 = none."""

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0 (log-probabilities are needed)")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; allowed is above 0 and at most 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be 1 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be 1 or more, or None for all ids")
        if self.support_k < 0:
            raise ValueError(f"support_k is {self.support_k}; it must be 0 or more")


class Engine(Protocol):
    """Samples completions of token-id prompts from one set of weights."""

    policy_version: int
    """The publication whose weights are loaded; 0 = those of the model folder."""

    def generate(self, requests: Sequence[GenerationRequest], sampling: EngineSampling) -> list[tuple[Completion, ...]]:
        """Return ``num_completions`` completions for each request, in order; child j is sampled with ``seed + j``."""
        ...

    def probe(self) -> None:
        """Generate one token, so that a hung or broken engine shows itself; raises what the engine raises."""
        ...

    def drain(self) -> None:
        """Close a weight update that was started and never finished; no-op otherwise."""
        ...
