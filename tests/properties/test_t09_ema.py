"""T9: closed forms of the moving teachers, in weights and, where logits are linear in them, in what is learned from them."""

from __future__ import annotations

import pytest
import torch

from cluster.spec.composition import Term
from cluster.spec.objectives import ForwardKL, ReverseKL
from cluster.spec.supports import FullSupport
from cluster.spec.teachers import EmaTeacher, RestartAndFreezeTeacher
from services.teacher.strategies import STRATEGIES, Moment
from tests.properties.head import teacher_fields, through_the_head
from tests.properties.naive import geometric, random_logits

TOLERANCE = {"atol": 1e-12, "rtol": 0}
START, POLICY = random_logits(90), random_logits(91)
FIRST = torch.zeros(6, dtype=torch.int64)


def _after(spec, policies: list[torch.Tensor], *, per_batch: int = 1) -> torch.Tensor:
    """The teacher's weights after following each of the policies, by the project's own strategy."""
    state = {"weight": START.clone()}
    for index, policy in enumerate(policies, start=1):
        moment = Moment(follows=-(-index // per_batch), ends_batch=index % per_batch == 0)
        STRATEGIES[spec.kind].update(state, {"weight": policy}, spec, moment)
    return state["weight"]


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("count", [1, 7, 50])
def test_t9_a_constant_policy_gains_the_share_one_minus_the_power(rate, count):
    share = 1 - (1 - rate) ** count
    torch.testing.assert_close(
        _after(EmaTeacher(update_rate=rate), [POLICY] * count), torch.lerp(START, POLICY, share), **TOLERANCE
    )


def test_t9_a_moving_policy_is_weighted_by_its_age():
    rate, policies = 0.2, [random_logits(seed) for seed in range(92, 98)]
    expected = (1 - rate) ** 6 * START + sum(rate * (1 - rate) ** (6 - n) * policy for n, policy in enumerate(policies, start=1))
    torch.testing.assert_close(_after(EmaTeacher(update_rate=rate), policies), expected, **TOLERANCE)


@pytest.mark.parametrize(("period", "gamma"), [(50, 0.4), (10, 0.9), (1, 0.05)])
def test_t9_restart_and_freeze_meets_the_ema_of_its_equivalent_rate(period, gamma):
    """On a constant policy, at the end of every period; in between it has not moved."""
    spec = RestartAndFreezeTeacher(period=period, gamma=gamma)
    ema = EmaTeacher(update_rate=spec.equivalent_update_rate)
    for periods in (1, 2):
        count = periods * period
        torch.testing.assert_close(_after(spec, [POLICY] * count), _after(ema, [POLICY] * count), **TOLERANCE)
    assert torch.equal(_after(spec, [POLICY] * (period - 1)), START)
    # 2607.01763: gamma 40 % was chosen to match a rate of 1 % over a stage of 50 steps
    assert RestartAndFreezeTeacher(period=50, gamma=0.4).equivalent_update_rate == pytest.approx(0.01, abs=2e-4)


def test_t9_one_update_per_batch_is_not_an_update_for_every_optimizer_step():
    """With three optimizer steps per batch neither the rate nor 1 - (1 - r)^3 of the batch's last policy gives the same."""
    rate, policies = 0.2, [random_logits(seed) for seed in range(92, 98)]
    every_step = _after(EmaTeacher(update_rate=rate, every="optimizer_step"), policies, per_batch=3)
    per_batch = _after(EmaTeacher(update_rate=rate), policies, per_batch=3)
    matched = _after(EmaTeacher(update_rate=1 - (1 - rate) ** 3), policies, per_batch=3)
    torch.testing.assert_close(every_step, _after(EmaTeacher(update_rate=rate), policies), **TOLERANCE)
    torch.testing.assert_close(per_batch, _after(EmaTeacher(update_rate=rate), policies[2::3]), **TOLERANCE)
    assert (every_step - per_batch).abs().max() > 0.1 and (every_step - matched).abs().max() > 0.1


@pytest.mark.parametrize("spec", [ForwardKL(), ReverseKL()], ids=lambda spec: spec.kind)
def test_t9_where_logits_are_the_weights_an_ema_is_a_trust_region_that_widens(spec):
    """What is learned from the EMA after n steps is what is learned from start^(1 - share) policy^share."""
    ema = _after(EmaTeacher(update_rate=0.05), [POLICY] * 20).log_softmax(-1)
    mixed = geometric(START.log_softmax(-1), POLICY.log_softmax(-1), 1 - 0.95**20)
    term, learner = Term(name="distillation", objective=spec, support=FullSupport()), random_logits(99)
    outcomes = [through_the_head(term, learner, FIRST, **teacher_fields(teacher, FIRST, full=True)) for teacher in (ema, mixed)]
    for got, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE)
    assert outcomes[0][1].abs().max() > 0.01
