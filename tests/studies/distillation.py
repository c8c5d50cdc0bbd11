"""The trainings of the variance study: teachers by REINFORCE, then one policy from both teachers in turn, for every gamma.

Legend: G gammas, S seeds, R = G * S runs side by side (gamma-major), B trajectories, T steps. Advantages and loss are the
project's own: ``token_advantages`` and the policy-gradient objective without clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.spec.objectives import PolicyGradient, TokenAdvantage
from tests.studies import toy_control as toy
from trainer.advantages import token_advantages
from trainer.objectives import OBJECTIVES, RowInputs

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
COMPARED_EVERY = 20
"""Iterations between two looks at all gammas on one and the same policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One study."""

    gammas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    seeds: tuple[int, ...] = (42, 43, 2026)
    optimizers: tuple[tuple[str, float], ...] = (("adam", 1e-3), ("sgd", 1e-3), ("sgd", 1e-4))
    """name and step size; what gamma = 1 does depends on them"""
    iterations: int = 2000
    batch: int = 64
    micro_batches: int = 8
    horizon: int = 20
    teacher_iterations: int = 600
    teacher_learning_rate: float = 3e-3


QUICK = Settings(gammas=(0.0, 1.0), seeds=(42,), optimizers=(("adam", 1e-3),), iterations=60, teacher_iterations=60, horizon=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one optimizer made of all runs."""

    variances: Tensor
    """[iterations, G, S] of each run's own gradient"""
    same_policy_variances: Tensor
    """[looks, G, S]: what each gamma's gradient would vary by on the trajectories of the first gamma's run"""
    final_distances: Tensor
    """[tasks, G, S]"""


def distillation(gamma: float) -> PolicyGradient:
    """Sampled-token on-policy distillation without clips."""
    advantage = TokenAdvantage(outcome_weight=0.0, teacher_weight=1.0, future_coupling=gamma)
    return PolicyGradient(clip_low=None, clip_high=None, advantage=advantage)


def distillation_advantages(sampled: Tensor, taught: Tensor, gamma: float) -> Tensor:
    """log p and log q of the actions, [..., T] -> advantages of the same shape, trajectory by trajectory."""
    spec, length = distillation(gamma).advantage, sampled.shape[-1]
    advantages = [
        token_advantages(0.0, spec, num_tokens=length, rollout_logprobs=policy, teacher_logprobs=teacher).values
        for policy, teacher in zip(sampled.reshape(-1, length).numpy(), taught.reshape(-1, length).numpy(), strict=True)
    ]
    return torch.from_numpy(np.stack(advantages)).reshape(sampled.shape)


def policy_gradient_loss(logprobs: Tensor, sampled: Tensor, advantages: Tensor) -> Tensor:
    """[R, B, T] each -> the sum over runs of each run's mean row value; runs do not touch each other's weights."""
    spec = distillation(0.0)
    rows = RowInputs(
        policy_logprobs=logprobs.reshape(-1),
        rollout_logprobs=sampled.reshape(-1),
        advantages=advantages.reshape(-1),
        token_weights=torch.ones(logprobs.numel()),
    )
    return OBJECTIVES[spec.kind](rows, spec).values.sum() / logprobs[0].numel()


def train_teachers(settings: Settings) -> list[toy.Weights]:
    """Per task, one teacher per seed: REINFORCE on the negative squared distance, reward to go, the batch's mean as baseline."""
    teachers = []
    for task, (_, target) in enumerate(toy.TASKS):
        generators = [torch.Generator().manual_seed(1000 * (task + 1) + seed) for seed in settings.seeds]
        weights = toy.initial_weights(generators)
        optimizer = torch.optim.Adam(weights.values(), lr=settings.teacher_learning_rate)
        for _ in range(settings.teacher_iterations):
            done = toy.roll_out(weights, task, toy.draw_noise(generators, 1, settings.batch, settings.horizon))
            rewards = -((done.positions - target) ** 2)
            to_go = rewards.flip(-1).cumsum(-1).flip(-1)
            update(optimizer, weights, done, (to_go - to_go.mean(1, keepdim=True)) / to_go.std(1, keepdim=True))
        teachers.append({name: value.detach() for name, value in weights.items()})
    return teachers


def update(optimizer: torch.optim.Optimizer, weights: toy.Weights, done: toy.Trajectories, advantages: Tensor) -> Tensor:
    """One step of every run; the last hidden states [R, B * T, H] before it."""
    hidden = toy.last_hidden(weights, done.observations.flatten(1, 2))
    means = torch.baddbmm(weights["b3"], hidden, weights["w3"])[..., 0].reshape(done.actions.shape)
    optimizer.zero_grad()
    policy_gradient_loss(toy.log_density(done.actions, means), done.logprobs, advantages).backward()
    optimizer.step()
    return hidden.detach()


def distil(settings: Settings, teachers: list[toy.Weights], optimizer_name: str, learning_rate: float) -> Outcome:
    """Train all R runs side by side, the two tasks in turn."""
    count, seeds = len(settings.gammas), len(settings.seeds)
    weights = toy.initial_weights([torch.Generator().manual_seed(seed) for seed in settings.seeds])
    weights = {name: _copies(value.detach(), count).requires_grad_() for name, value in weights.items()}
    taught_by = [{name: _copies(value, count) for name, value in teacher.items()} for teacher in teachers]
    noise = [torch.Generator().manual_seed(10_000 + seed) for seed in settings.seeds]
    optimizer = OPTIMIZERS[optimizer_name](weights.values(), lr=learning_rate)
    variances, compared = [], []
    for iteration in range(settings.iterations):
        task = iteration % len(toy.TASKS)
        done = toy.roll_out(weights, task, toy.draw_noise(noise, count, settings.batch, settings.horizon))
        taught = teacher_logprobs(taught_by[task], done)
        parts = zip(done.logprobs.split(seeds), taught.split(seeds), settings.gammas, strict=True)
        advantages = torch.cat([distillation_advantages(*part) for part in parts])
        hidden = update(optimizer, weights, done, advantages)
        variances.append(toy.output_layer_variance(done, advantages, hidden, settings.micro_batches))
        if iteration % COMPARED_EVERY < len(toy.TASKS):
            compared.append(_all_gammas(settings, done.first(seeds), taught[:seeds], hidden[:seeds]))
    shape = (count, seeds)
    return Outcome(
        variances=torch.stack(variances).reshape(-1, *shape),
        same_policy_variances=torch.stack(compared),
        final_distances=final_distances(weights, settings).reshape(-1, *shape),
    )


def _copies(values: Tensor, count: int) -> Tensor:
    """[S, ...] -> [count * S, ...], copy after copy"""
    return values.repeat(count, *[1] * (values.dim() - 1))


@torch.no_grad()
def teacher_logprobs(teacher: toy.Weights, done: toy.Trajectories) -> Tensor:
    """[R, B, T] of the actions that were taken"""
    means = toy.action_means(teacher, done.observations.flatten(1, 2)).reshape(done.actions.shape)
    return toy.log_density(done.actions, means)


def _all_gammas(settings: Settings, done: toy.Trajectories, taught: Tensor, hidden: Tensor) -> Tensor:
    """[G, S] variances on the same trajectories"""
    return torch.stack(
        [
            toy.output_layer_variance(done, distillation_advantages(done.logprobs, taught, gamma), hidden, settings.micro_batches)
            for gamma in settings.gammas
        ]
    )


def final_distances(weights: toy.Weights, settings: Settings) -> Tensor:
    """[tasks, R]: mean distance of 256 trajectories' ends to each task's target."""
    runs = weights["w1"].shape[0]
    noise = torch.randn(1, 256, settings.horizon + 1, generator=torch.Generator().manual_seed(7)).repeat(runs, 1, 1)
    return torch.stack([toy.missed_by(toy.roll_out(weights, task, noise), task) for task in range(len(toy.TASKS))])
