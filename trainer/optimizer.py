"""AdamW over this rank's shards, with a linear warm-up.

The optimizer sees plain local tensors (views of the FSDP2 shards), not DTensors: AdamW is elementwise, so sharding does
not concern it, and its fused kernel then runs without any dispatch per parameter. Moments are addressed by parameter
name, so they outlive a change of the number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.sharding import local_shard, shard_like, sharded_as

MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedAdamW:
    """AdamW (1711.05101) on the shards of named parameters. ``steps_taken`` counts applied updates since the last reset."""

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self._parameters = parameters
        # a rank may hold nothing of a short parameter
        self._shards = {name: local_shard(value.detach()) for name, value in parameters.items() if local_shard(value.detach()).numel() > 0}
        self._warmup_steps = 0
        self._lr = 0.0
        self.steps_taken = 0
        self._adam = self._new_adam()

    def _new_adam(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(list(self._shards.values()), lr=0.0, fused=True)

    def configure(self, spec: Any, *, reset: bool) -> None:
        """Take lr, betas, eps, weight_decay, warmup_steps of a stage; ``reset`` forgets moments and the warm-up's count."""
        if reset:
            self.steps_taken = 0
            self._adam = self._new_adam()
        self._lr, self._warmup_steps = spec.lr, spec.warmup_steps
        for group in self._adam.param_groups:
            group.update(betas=tuple(spec.betas), eps=spec.eps, weight_decay=spec.weight_decay)

    @property
    def learning_rate(self) -> float:
        """Of the next update: lr x min(1, (updates + 1) / warmup_steps)."""
        if self._warmup_steps == 0:
            return self._lr
        return self._lr * min(1.0, (self.steps_taken + 1) / self._warmup_steps)

    @torch.no_grad()
    def step(self, *, gradient_scale: float) -> None:
        """One update with every gradient multiplied by ``gradient_scale`` (the clip), in place."""
        gradients = []
        for name, shard in self._shards.items():
            shard.grad = local_shard(self._parameters[name].grad)
            gradients.append(shard.grad)
        if gradient_scale != 1.0:
            torch._foreach_mul_(gradients, gradient_scale)
        for group in self._adam.param_groups:
            group["lr"] = self.learning_rate
        self._adam.step()
        self.steps_taken += 1
        for shard in self._shards.values():
            shard.grad = None

    def moment(self, name: str, moment: str) -> Tensor:
        """One moment of a parameter, sharded as the parameter is; zeros before the first update."""
        parameter = self._parameters[name]
        shard = self._shards.get(name)
        state = self._adam.state.get(shard, {}) if shard is not None else {}
        local = state.get(moment, torch.zeros_like(local_shard(parameter.detach())))
        return sharded_as(local, parameter)

    def restore(self, moments: dict[tuple[str, str], Tensor], steps_taken: int) -> None:
        """Put full moments (by parameter name and moment) and the count back, each rank keeping its shard."""
        hyper = {key: value for key, value in self._adam.param_groups[0].items() if key != "params"}
        self._adam = self._new_adam()
        self._adam.param_groups[0].update(hyper)
        self.steps_taken = steps_taken
        if steps_taken == 0:
            return
        for name, shard in self._shards.items():
            state = {moment: shard_like(moments[name, moment], self._parameters[name]).clone() for moment in MOMENTS}
            self._adam.state[shard] = {"step": torch.tensor(float(steps_taken), device=shard.device), **state}
