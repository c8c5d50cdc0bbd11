"""T2: how variance grows with the horizon: token level T^2, sequence level T^3 on the policy's samples and T^4 on stale ones."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from cluster.spec.objectives import PolicyGradient
from tests.properties.naive import rows, token_sums, values_of
from tests.studies import distillation, opd_variance, toy_control
from tests.studies.horizon import ON_POLICY, STALE, CoinTokens, gradient_moments, gradient_variance, growth_exponent

LONG = 2048
SLOPE_TOLERANCE = 0.03
"""On the exponent between T = 2048 and 4096; lower powers of T still take 0.4 to 2 percent there."""


def _enumerated_variance(tokens: CoinTokens, horizon: int, gamma: float) -> float:
    """Over both coins and all token sequences, with the project's objective and advantages."""
    logit = torch.tensor(math.log(tokens.policy / (1 - tokens.policy)), dtype=torch.float64, requires_grad=True)
    policy = torch.nn.functional.logsigmoid(torch.stack((-logit, logit)))
    spec = PolicyGradient(clip_low=None, clip_high=None)
    first = second = 0.0
    for coin in (0, 1):
        outcomes = tokens.outcomes(coin)
        for choice in itertools.product((0, 1), repeat=horizon):
            drawn = [outcomes[0] if bit else outcomes[1] for bit in choice]
            probability = 0.5 * math.prod(p for p, _, _ in drawn)
            rewards = torch.tensor([[r for _, _, r in drawn]], dtype=torch.float64)
            advantages = token_sums(rewards, gamma)[0]
            ids = torch.tensor(choice)
            # the ratio is against the policy itself: nobody corrects for the sampler, as with stale samples in practice
            inputs = rows(policy.expand(horizon, 2), ids, advantages=advantages)
            (gradient,) = torch.autograd.grad(-values_of(spec, inputs).sum(), logit, retain_graph=True)
            first += probability * gradient.item()
            second += probability * gradient.item() ** 2
    return second - first**2


@pytest.mark.parametrize("tokens", [ON_POLICY, STALE], ids=["on_policy", "stale"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_t2_closed_form_equals_enumeration_with_the_projects_own_code(tokens, gamma):
    assert gradient_variance(tokens, 5, gamma) == pytest.approx(_enumerated_variance(tokens, 5, gamma), rel=1e-10)


@pytest.mark.parametrize(
    ("tokens", "gamma", "exponent"),
    [
        (ON_POLICY, 0.0, 2.0),
        (ON_POLICY, 0.5, 2.0),
        (ON_POLICY, 1.0, 3.0),
        (STALE, 0.0, 2.0),
        (STALE, 0.5, 2.0),
        (STALE, 1.0, 4.0),
    ],
)
def test_t2_growth_exponents(tokens, gamma, exponent):
    assert growth_exponent(tokens, gamma, LONG) == pytest.approx(exponent, abs=SLOPE_TOLERANCE)


@pytest.mark.parametrize("tokens", [ON_POLICY, STALE], ids=["on_policy", "stale"])
def test_t2_larger_gamma_varies_more_at_every_horizon(tokens):
    for horizon in (2, 8, 32, 128):
        by_gamma = [gradient_variance(tokens, horizon, gamma) for gamma in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert by_gamma == sorted(by_gamma) and by_gamma[-1] > 1.1 * by_gamma[0]


def test_t2_the_bounds_hold_and_on_policy_the_fourth_power_is_out_of_reach():
    """|s| <= G, |r| <= R: token level (T G R)^2; sequence level (T^2 G R)^2, on policy R^2 G^2 T^2 (T + 1) / 2."""
    for tokens in (ON_POLICY, STALE):
        largest = [max(abs(outcome[part]) for coin in (0, 1) for outcome in tokens.outcomes(coin)) for part in (1, 2)]
        both = (largest[0] * largest[1]) ** 2
        for horizon in (1, 4, 64, 1024):
            token, sequence = (
                sum(gradient_moments(tokens.outcomes(coin), horizon, gamma)[1] for coin in (0, 1)) / 2 for gamma in (0.0, 1.0)
            )
            assert token <= both * horizon**2 * (1 + 1e-12)
            on_policy = horizon**2 * (horizon + 1) / 2
            assert sequence <= both * (on_policy if tokens is ON_POLICY else horizon**4) * (1 + 1e-12)


def test_t2_the_toy_study_runs_and_larger_gamma_varies_more(tmp_path):
    """The quick mode; what it holds is the order of the variances on one policy, not the study's figures."""
    opd_variance.main(["--quick", "--output", str(tmp_path)])
    figures = json.loads((tmp_path / f"{opd_variance.NAME}.json").read_text())
    by_gamma = figures["by_optimizer"]["adam 0.001"]
    on_one_policy = [by_gamma[gamma]["variance_on_the_first_gammas_policy"] for gamma in ("0", "1")]
    assert figures["parameters"] == 4155
    assert on_one_policy[1] > 3.0 * on_one_policy[0] > 0.0
    assert (tmp_path / f"{opd_variance.NAME}.png").read_bytes().startswith(b"\x89PNG")


def test_t2_the_studys_variance_is_that_of_autograds_gradients():
    """(1 / M) sum |g_m - gbar|^2 from the layer's inputs, against a backward pass through each micro-batch's loss."""
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    weights = toy_control.initial_weights(generators)
    done = toy_control.roll_out(weights, 0, toy_control.draw_noise(generators, 1, 8, 5))
    advantages = torch.randn(2, 8, 5, generator=generators[0])
    hidden = toy_control.last_hidden(weights, done.observations.flatten(1, 2))
    gradients = []
    for start in range(0, 8, 2):
        means = toy_control.action_means(weights, done.observations[:, start : start + 2].flatten(1, 2)).reshape(2, 2, 5)
        densities = toy_control.log_density(done.actions[:, start : start + 2], means)
        loss = distillation.policy_gradient_loss(densities, done.logprobs[:, start : start + 2], advantages[:, start : start + 2])
        gradients.append(
            torch.cat([part.flatten(1) for part in torch.autograd.grad(loss, (weights["w3"], weights["b3"]))], dim=1)
        )
    stacked = torch.stack(gradients)
    expected = (stacked - stacked.mean(0)).square().sum(-1).mean(0)
    torch.testing.assert_close(
        toy_control.output_layer_variance(done, advantages, hidden.detach(), 4), expected, rtol=1e-4, atol=0
    )
