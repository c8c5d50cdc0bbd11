"""What the property tests compare with: a world small enough to enumerate, and ten-line versions of every divergence.

Legend: V tokens, T positions, N = V^T sequences, P parameters shared by all prefixes. Everything is float64. The policy's
logits at a prefix are linear in the parameters, so gradients flow between positions as in a real model; the teacher's and
the reference's are free. The invariant: sums run over all sequences with their exact probabilities, never over samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.advantages import discounted_sums
from trainer.objectives import OBJECTIVES, RowInputs
from trainer.objectives.supports import complete_support, present_columns


class TinyWorld:
    """All sequences of T tokens out of V, and distributions over the next token at every prefix."""

    def __init__(self, *, vocabulary: int = 3, length: int = 3, parameters: int = 4, seed: int = 0):
        self.vocabulary, self.length = vocabulary, length
        self.prefixes = [p for t in range(length) for p in itertools.product(range(vocabulary), repeat=t)]
        self.tokens = torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))
        """[N, T]"""
        row = {prefix: index for index, prefix in enumerate(self.prefixes)}
        self.prefix_of = torch.tensor([[row[tuple(y[:t])] for t in range(length)] for y in self.tokens.tolist()])
        """[N, T]: row of the prefix at each position"""
        generator = torch.Generator().manual_seed(seed)
        self.theta = torch.randn(parameters, generator=generator, dtype=torch.float64)
        self._features = torch.randn(len(self.prefixes), vocabulary, parameters, generator=generator, dtype=torch.float64)
        shape = (len(self.prefixes), vocabulary)
        self.teacher = (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1)
        self.reference = torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1)

    def policy(self, theta: Tensor) -> Tensor:
        """[P] -> log-probabilities [prefixes, V]"""
        return (self._features @ theta).log_softmax(-1)

    def on_sequences(self, table: Tensor) -> Tensor:
        """[prefixes, V] -> [N, T, V]"""
        return table[self.prefix_of]

    def sampled(self, table: Tensor) -> Tensor:
        """[prefixes, V] -> [N, T] of the sequences' own tokens"""
        return self.on_sequences(table).gather(2, self.tokens[..., None])[..., 0]

    def probabilities(self, theta: Tensor) -> Tensor:
        """[N] of the sequences, no gradient"""
        return self.sampled(self.policy(theta.detach())).sum(1).exp()

    def scores(self, theta: Tensor) -> Tensor:
        """[N, T, P]: gradient of each token's log-probability"""
        return torch.autograd.functional.jacobian(lambda at: self.sampled(self.policy(at)), theta)


def rows(policy: Tensor, token_ids: Tensor, *, teacher: Tensor | None = None, support: bool = False, **fields: Any) -> RowInputs:
    """policy, teacher [R, V] log-probabilities and [R] sampled ids -> the rows of an objective; ``support``: all V columns."""
    own = policy.gather(1, token_ids[:, None])[:, 0]
    given = {
        "policy_logprobs": own,
        "rollout_logprobs": own.detach(),
        "teacher_logprobs": None if teacher is None else teacher.gather(1, token_ids[:, None])[:, 0],
        "policy_support_logprobs": policy if support else None,
        "teacher_support_logprobs": teacher if support else None,
        "token_weights": torch.ones_like(own),
    }
    return RowInputs(**(given | fields))


def expected_gradient(world: TinyWorld, theta: Tensor, row_values: Callable[[Tensor], Tensor]) -> Tensor:
    """[P]: sum over sequences of probability times the gradient of the sequence's summed row values.

    ``row_values``: log-probabilities [N * T, V] with gradient -> [N * T].
    """
    at = theta.clone().requires_grad_()
    values = row_values(world.on_sequences(world.policy(at)).flatten(0, 1))
    total = (world.probabilities(theta) * values.reshape(-1, world.length).sum(1)).sum()
    return torch.autograd.grad(total, at)[0]


def gradient_at(logits: Tensor, row_values: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of the summed values of rows with these logits, [R, V]."""
    at = logits.clone().requires_grad_()
    return torch.autograd.grad(row_values(at.log_softmax(-1)).sum(), at)[0]


def values_of(spec: Any, inputs: RowInputs) -> Tensor:
    """[R]: the objective of a spec, looked up as the trainer does."""
    return OBJECTIVES[spec.kind](inputs, spec).values


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jensen_shannon(p: Sequence[float], q: Sequence[float], weight: float) -> float:
    m = [(1 - weight) * a + weight * b for a, b in zip(p, q, strict=True)]
    return (1 - weight) * kl(p, m) + weight * kl(q, m)


def with_tail(p: Sequence[float], ids: Sequence[int]) -> list[float]:
    """The K + 1 events: each id, and the rest."""
    kept = [p[i] for i in ids]
    return [*kept, 1.0 - sum(kept)]


def renormalised(p: Sequence[float], ids: Sequence[int]) -> list[float]:
    kept = [p[i] for i in ids]
    return [value / sum(kept) for value in kept]


def geometric(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """log of first^(1 - weight) second^weight, normalised; log-probabilities [..., V]"""
    mixed = (1 - weight) * first + weight * second
    return mixed - torch.logsumexp(mixed, -1, keepdim=True)


def token_sums(rewards: Tensor, gamma: float) -> Tensor:
    """[N, T]: the project's own discounted sums, completion by completion."""
    return torch.from_numpy(np.stack([discounted_sums(row.numpy(), gamma) for row in rewards]))


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """[..., T] -> sum_{u >= t} gamma^(u - t) r_u, by the definition"""
    length = rewards.shape[-1]
    return torch.stack([sum(gamma ** (u - t) * rewards[..., u] for u in range(t, length)) for t in range(length)], dim=-1)


def on_support(logprobs: Tensor, ids: Tensor, tail: str, *, sampled: Tensor | None = None) -> Tensor:
    """[R, V] on the columns ids [R, K] as the project completes them; ``sampled`` [R]: joined as the last column."""
    columns = ids if sampled is None else torch.cat((ids, sampled[:, None]), dim=1)
    present = present_columns(columns, join_sampled=sampled is not None)
    return complete_support(logprobs.gather(1, columns), tail, present)


def random_logits(seed: int, num_rows: int = 6, vocabulary: int = 9, scale: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_rows, vocabulary, generator=generator, dtype=torch.float64)
