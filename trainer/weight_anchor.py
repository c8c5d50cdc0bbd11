"""The pull of an L2 anchor: coefficient / 2 x |theta - theta_0|^2 over all weights, on this rank's shards.

theta_0 is the policy where the stage began, or the base model. It is no term of the loss head: its gradient is added to the
accumulated one, once per update, before the norm is taken. Invariant: a stage that is resumed keeps the theta_0 it began
with; that of ``stage_start`` is part of the saved state, the base model is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.sharding import local_shard, shard_like, sharded_as

Tensors = Iterable[tuple[str, Tensor]]


class WeightAnchor:
    """theta_0 for the named parameters of a learner; idle while the stage has no anchor."""

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self._parameters = parameters
        self._spec: Any = None
        self._shards: dict[str, Tensor] = {}

    def begin_stage(self, spec: Any | None, *, resumed: bool, base: Callable[[], Tensors]) -> None:
        """Take a stage's anchor or none. A resumed stage keeps what ``restore`` brought, or will bring."""
        self._spec = spec
        if spec is None:
            self._shards = {}
        elif spec.to == "base":
            self.restore(base())
        elif not resumed:
            self._shards = {name: local_shard(value.detach()).clone() for name, value in self._parameters.items()}

    @property
    def is_active(self) -> bool:
        return self._spec is not None

    @property
    def is_saved(self) -> bool:
        """Whether theta_0 is part of the learner's state: the base model is not, it can be read again."""
        return self.is_active and self._spec.to == "stage_start"

    def penalty(self, squared_distance: float) -> float:
        return 0.5 * self._spec.coefficient * squared_distance

    @torch.no_grad()
    def squared_distance(self, *, pull: bool) -> Tensor:
        """float64: this rank's part of |theta - theta_0|^2; with ``pull`` the gradients get coefficient x (theta - theta_0)."""
        if not self._shards:
            raise ValueError("the stage was resumed without its l2_anchor: load the state that was saved in it")
        total = torch.zeros((), dtype=torch.float64, device=next(iter(self._shards.values())).device)
        for name, parameter in self._parameters.items():
            difference = local_shard(parameter.detach()) - self._shards[name]
            total += difference.double().square().sum()
            if pull:
                local_shard(parameter.grad).add_(difference.to(parameter.grad.dtype), alpha=self._spec.coefficient)
        return total

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, theta_0 sharded as the parameter is), for the saved state."""
        for name, shard in self._shards.items():
            yield name, sharded_as(shard, self._parameters[name])

    def restore(self, tensors: Tensors) -> None:
        """Take whole tensors by parameter name, each rank keeping its shard; names of no parameter (a tied head) are left out."""
        shards = {name: shard_like(full, self._parameters[name]).clone() for name, full in tensors if name in self._parameters}
        missing = sorted(set(self._parameters) - set(shards))
        if missing:
            raise ValueError(f"l2_anchor: {len(missing)} tensors are missing, the first is {missing[0]}")
        self._shards = shards

    def forget(self) -> None:
        """Drop a saved theta_0 that the loaded state does not have."""
        if self._spec is None or self.is_saved:
            self._shards = {}
