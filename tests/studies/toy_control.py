"""A point on a line, and Gaussian policies that push it: the toy task of the variance study.

Legend: R runs side by side (one policy each, weights stacked), B trajectories, T steps, H hidden units. All runs advance
together in batched products, so that 15 trainings fit on one core. The invariant: runs share nothing but the code; the
noise of a run comes from its own seed, and is the same for every gamma of that seed.

The task: x_0 is the start, x_{t+1} = x_t + STEP * a_t with a_t ~ N(mean(x_t, goal), STD). Two tasks mirror each other:
from +2 to -3, and from -2 to +3. The policy reads the position and the goal, so both tasks fit into one policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

TASKS = ((2.0, -3.0), (-2.0, 3.0))
"""(start, target)"""
STEP, STD, HIDDEN, START_SPREAD = 0.2, 0.5, 62, 0.1
WEIGHT_SHAPES = {"w1": (2, HIDDEN), "b1": (1, HIDDEN), "w2": (HIDDEN, HIDDEN), "b2": (1, HIDDEN), "w3": (HIDDEN, 1), "b3": (1, 1)}
"""Three layers, 4155 parameters."""

Weights = dict[str, Tensor]
"""name -> [R, *shape]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectories:
    """What R policies did on one task."""

    observations: Tensor
    """[R, B, T, 2]: position and goal, both over 3"""
    actions: Tensor
    """[R, B, T]"""
    logprobs: Tensor
    """[R, B, T], as sampled"""
    positions: Tensor
    """[R, B, T]: after each step"""
    noise: Tensor
    """[R, B, T]: (action - mean) / STD"""

    def first(self, runs: int) -> Trajectories:
        return Trajectories(**{part.name: getattr(self, part.name)[:runs] for part in fields(self)})


def initial_weights(generators: list[torch.Generator]) -> Weights:
    """One policy per generator; the output layer starts small, so that the first actions are near zero."""
    scale = {"w1": 1.0 / math.sqrt(2.0), "w2": 1.0 / math.sqrt(HIDDEN), "w3": 0.1 / math.sqrt(HIDDEN)}
    weights = {}
    for name, shape in WEIGHT_SHAPES.items():
        drawn = [torch.randn(shape, generator=generator) * scale.get(name, 0.0) for generator in generators]
        weights[name] = torch.stack(drawn).requires_grad_()
    return weights


def last_hidden(weights: Weights, observations: Tensor) -> Tensor:
    """[R, N, 2] -> [R, N, H], what the output layer reads."""
    hidden = torch.tanh(torch.baddbmm(weights["b1"], observations, weights["w1"]))
    return torch.tanh(torch.baddbmm(weights["b2"], hidden, weights["w2"]))


def action_means(weights: Weights, observations: Tensor) -> Tensor:
    """[R, N, 2] -> [R, N]"""
    return torch.baddbmm(weights["b3"], last_hidden(weights, observations), weights["w3"])[..., 0]


def log_density(actions: Tensor, means: Tensor) -> Tensor:
    return -0.5 * ((actions - means) / STD) ** 2 - math.log(STD * math.sqrt(2.0 * math.pi))


@torch.no_grad()
def roll_out(weights: Weights, task: int, noise: Tensor) -> Trajectories:
    """noise: standard normal [R, B, T + 1]; the first column spreads the start."""
    start, target = TASKS[task]
    position = start + START_SPREAD * noise[..., 0]
    goal = torch.full_like(position, target / 3.0)
    seen, taken, likely, reached = [], [], [], []
    for step in range(1, noise.shape[-1]):
        observation = torch.stack((position / 3.0, goal), dim=-1)
        mean = action_means(weights, observation)
        action = mean + STD * noise[..., step]
        position = position + STEP * action
        for kept, value in ((seen, observation), (taken, action), (likely, log_density(action, mean)), (reached, position)):
            kept.append(value)
    return Trajectories(
        observations=torch.stack(seen, 2),
        actions=torch.stack(taken, 2),
        logprobs=torch.stack(likely, 2),
        positions=torch.stack(reached, 2),
        noise=noise[..., 1:],
    )


def draw_noise(generators: list[torch.Generator], copies: int, batch: int, horizon: int) -> Tensor:
    """[copies * G, B, T + 1]: generator g's noise in every copy (copy-major), so that gammas see the same luck."""
    drawn = torch.stack([torch.randn(batch, horizon + 1, generator=generator) for generator in generators])
    return drawn.repeat(copies, 1, 1)


def missed_by(trajectories: Trajectories, task: int) -> Tensor:
    """[R]: mean distance of the last position to the target."""
    return (trajectories.positions[..., -1] - TASKS[task][1]).abs().mean(-1)


@torch.no_grad()
def output_layer_variance(done: Trajectories, advantages: Tensor, hidden: Tensor, micro_batches: int) -> Tensor:
    """(1 / M) sum_m |g_m - gbar|^2 on the output layer, [R]; hidden [R, B * T, H] as the actions were taken.

    g_m is the gradient of the mean of -A log density over micro-batch m, which takes whole trajectories. The layer is
    linear: a row's part is -A (action - mean) / STD^2 times (hidden, 1).
    """
    runs, batch, horizon = advantages.shape
    rows = batch * horizon // micro_batches
    by_batch = (-advantages * done.noise / STD).reshape(runs, micro_batches, rows)
    inputs = hidden.reshape(runs, micro_batches, rows, HIDDEN)
    weight = torch.einsum("rmn,rmnh->rmh", by_batch, inputs) / rows
    gradients = torch.cat((weight, by_batch.sum(-1, keepdim=True) / rows), dim=-1)
    return (gradients - gradients.mean(1, keepdim=True)).square().sum((1, 2)) / micro_batches
