"""T7: what each support and tail keeps of the full divergence."""

from __future__ import annotations

import pytest
import torch

from cluster.spec.composition import Term
from cluster.spec.objectives import ForwardKL, JensenShannon, ReverseKL
from cluster.spec.supports import FullSupport, TopKSupport
from tests.properties import naive
from tests.properties.head import teacher_fields, through_the_head
from tests.properties.naive import gradient_at, on_support, random_logits, rows, values_of

ROWS, VOCABULARY = 6, 9
SPECS = [ForwardKL(), ReverseKL(), JensenShannon(weight=0.3)]
FIRST = torch.zeros(ROWS, dtype=torch.int64)
TAIL_FLOOR = 1e-6
"""The bucket's probability is held above 1e-7 (its logarithm stays finite), which a value may show at K = V."""


def _values(spec, policy: torch.Tensor, teacher: torch.Tensor, ids=None, tail="bucket", sampled=None) -> torch.Tensor:
    sides = (policy, teacher) if ids is None else [on_support(side, ids, tail, sampled=sampled) for side in (policy, teacher)]
    return values_of(
        spec, rows(policy, FIRST, teacher=teacher, policy_support_logprobs=sides[0], teacher_support_logprobs=sides[1])
    )


def _pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random_logits(seed), random_logits(seed + 1).log_softmax(-1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t7_values_equal_naive_versions(spec):
    logits, teacher = _pair(40)
    policy = logits.log_softmax(-1)
    ids = policy.topk(4, dim=-1).indices
    events = {"bucket": naive.with_tail, "renormalise": naive.renormalised}
    divergence = {
        "forward_kl": lambda p, q: naive.kl(q, p),
        "reverse_kl": naive.kl,
        "jensen_shannon": lambda p, q: naive.jensen_shannon(p, q, 0.3),
    }[spec.kind]
    for tail, coarse in events.items():
        expected = [
            divergence(
                coarse(policy[row].exp().tolist(), ids[row].tolist()), coarse(teacher[row].exp().tolist(), ids[row].tolist())
            )
            for row in range(ROWS)
        ]
        assert _values(spec, policy, teacher, ids, tail).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("whose", ["policy", "teacher"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t7_with_a_tail_bucket_more_columns_never_lower_it_and_v_meets_the_full(spec, whose):
    logits, teacher = _pair(42)
    policy = logits.log_softmax(-1)
    order = (policy if whose == "policy" else teacher).argsort(-1, descending=True)
    full, previous = _values(spec, policy, teacher), torch.zeros(ROWS, dtype=torch.float64)
    for k in range(1, VOCABULARY + 1):
        coarse = _values(spec, policy, teacher, order[:, :k])
        joined = _values(spec, policy, teacher, order[:, :k], sampled=order[:, -1])
        slack = TAIL_FLOOR if k >= VOCABULARY - 1 else 1e-13
        assert (previous <= coarse + slack).all() and (coarse <= joined + slack).all() and (joined <= full + slack).all()
        previous = coarse
    torch.testing.assert_close(previous, full, atol=TAIL_FLOOR, rtol=0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t7_renormalised_there_is_no_such_order(spec):
    """Of random pairs some lie above the full divergence and some below."""
    signs = set()
    for seed in range(50, 70, 2):
        logits, teacher = _pair(seed)
        policy = logits.log_softmax(-1)
        difference = _values(spec, policy, teacher, policy.topk(4, dim=-1).indices, "renormalise") - _values(
            spec, policy, teacher
        )
        signs |= set(torch.sign(difference[difference.abs() > 0.01]).tolist())
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t7_gradient_outside_the_support(spec):
    """Renormalised: none at all. With a bucket: one factor of the policy's probability, shared by all outside ids."""
    logits, teacher = _pair(44)
    ids = logits.topk(3, dim=-1).indices
    outside = torch.ones_like(logits, dtype=torch.bool).scatter_(1, ids, False)
    renormalised = gradient_at(logits, lambda policy: _values(spec, policy, teacher, ids, "renormalise"))
    assert renormalised[outside].abs().max() < 1e-15 and renormalised.abs().max() > 0.01
    bucket = gradient_at(logits, lambda policy: _values(spec, policy, teacher, ids))
    factor = (bucket / logits.softmax(-1))[outside].reshape(ROWS, -1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), atol=1e-13, rtol=0)
    assert factor.abs().min() > 1e-3


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t7_renormalised_over_one_id_is_always_zero_and_joined_with_the_sampled_token_is_not(spec):
    logits, teacher = _pair(46)
    ids = logits.topk(1, dim=-1).indices
    alone = lambda policy: _values(spec, policy, teacher, ids, "renormalise")  # noqa: E731
    assert alone(logits.log_softmax(-1)).abs().max() == 0.0 and gradient_at(logits, alone).abs().max() < 1e-15
    other = logits.argsort(-1)[:, 0]
    joined = lambda policy: _values(spec, policy, teacher, ids, "renormalise", other)  # noqa: E731
    assert joined(logits.log_softmax(-1)).min() > 1e-6 and gradient_at(logits, joined).abs().max() > 1e-3


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t7_a_joined_token_that_is_in_the_support_already_changes_nothing(spec, tail):
    logits, teacher = _pair(48)
    ids = logits.topk(4, dim=-1).indices
    plain = lambda policy: _values(spec, policy, teacher, ids, tail)  # noqa: E731
    joined = lambda policy: _values(spec, policy, teacher, ids, tail, ids[:, 2])  # noqa: E731
    torch.testing.assert_close(joined(logits.log_softmax(-1)), plain(logits.log_softmax(-1)), atol=1e-14, rtol=0)
    torch.testing.assert_close(gradient_at(logits, joined), gradient_at(logits, plain), atol=1e-14, rtol=0)


def _corrected(logits: torch.Tensor, teacher: torch.Tensor, ids: torch.Tensor, row_values) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected (value [R], gradient [R, V]) over the sampled token; row_values(policy, token ids)."""
    probabilities = logits.softmax(-1)
    value, gradient = torch.zeros(ROWS, dtype=torch.float64), torch.zeros_like(logits)
    for token in range(VOCABULARY):
        drawn = torch.full_like(FIRST, token)
        value += probabilities[:, token] * row_values(logits.log_softmax(-1), drawn)
        gradient += probabilities[:, token, None] * gradient_at(logits, lambda policy, drawn=drawn: row_values(policy, drawn))
    return value, gradient


def test_t7_the_corrected_tail_is_the_full_reverse_kl_in_value_and_gradient():
    """With the paper's stop-gradient on the tail's log-ratio the gradient would be off by that of p(S), the mass on the support."""
    logits, teacher = _pair(49)
    ids = logits.topk(3, dim=-1).indices

    def ours(policy: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        sides = [on_support(side, ids, "sampled_correction") for side in (policy, teacher)]
        outside = (ids != drawn[:, None]).all(-1)
        inputs = rows(
            policy,
            drawn,
            teacher=teacher,
            policy_support_logprobs=sides[0],
            teacher_support_logprobs=sides[1],
            sampled_outside=outside,
        )
        return values_of(ReverseKL(), inputs)

    def papers(policy: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        head = (policy.exp() * (policy - teacher)).gather(1, ids).sum(-1)
        own, q = policy.gather(1, drawn[:, None])[:, 0], teacher.gather(1, drawn[:, None])[:, 0]
        return head + (ids != drawn[:, None]).all(-1) * (own - q).detach() * (own - own.detach()).exp()

    full = lambda policy: _values(ReverseKL(), policy, teacher)  # noqa: E731
    mass = gradient_at(logits, lambda policy: policy.gather(1, ids).exp().sum(-1))
    for row_values, bias in ((ours, 0.0), (papers, 1.0)):
        value, gradient = _corrected(logits, teacher, ids, row_values)
        torch.testing.assert_close(value, full(logits.log_softmax(-1)), atol=1e-12, rtol=0)
        torch.testing.assert_close(gradient, gradient_at(logits, full) + bias * mass, atol=1e-12, rtol=0)
    assert mass.abs().max() > 0.05


@pytest.mark.parametrize("whose", ["rollout", "policy", "teacher"])
def test_t7_the_corrected_tail_through_the_loss_head(whose):
    logits, teacher = _pair(49)
    term = Term(
        name="distillation", objective=ReverseKL(), support=TopKSupport(k=3, support_from=whose, tail="sampled_correction")
    )
    given = None if whose == "policy" else random_logits(51).topk(3, dim=-1).indices
    value, gradient, probabilities = 0.0, torch.zeros_like(logits), logits.softmax(-1)
    for token in range(VOCABULARY):
        drawn = torch.full_like(FIRST, token)
        fields = teacher_fields(teacher, drawn, support_ids=given, full=given is None)
        for row in range(ROWS):
            one = slice(row, row + 1)
            part = {name: field[one] for name, field in fields.items()}
            own_value, own_gradient = through_the_head(term, logits[one], drawn[one], **part)
            value += probabilities[row, token] * own_value
            gradient[row] += probabilities[row, token] * own_gradient[0]
    full = lambda policy: _values(ReverseKL(), policy, teacher)  # noqa: E731
    assert value.item() == pytest.approx(full(logits.log_softmax(-1)).sum().item(), abs=1e-12)
    torch.testing.assert_close(gradient, gradient_at(logits, full), atol=1e-12, rtol=0)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize("whose", ["teacher", "policy"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t7_the_loss_head_has_the_objectives_values_and_gradients(spec, whose, tail, joined):
    logits, teacher = _pair(52)
    own = logits.topk(3, dim=-1).indices if whose == "policy" else teacher.topk(3, dim=-1).indices
    term = Term(name="distillation", objective=spec, support=TopKSupport(k=3, support_from=whose, tail=tail, join_sampled=joined))
    given = None if whose == "policy" else (torch.cat((own, FIRST[:, None]), dim=1) if joined else own)
    value, gradient = through_the_head(
        term, logits, FIRST, **teacher_fields(teacher, FIRST, support_ids=given, full=given is None)
    )
    direct = lambda policy: _values(spec, policy, teacher, own, tail, FIRST if joined else None)  # noqa: E731
    assert value.item() == pytest.approx(direct(logits.log_softmax(-1)).sum().item(), abs=1e-12)
    torch.testing.assert_close(gradient, gradient_at(logits, direct), atol=1e-12, rtol=0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t7_the_loss_heads_closed_form_over_the_vocabulary_is_autograds(spec):
    logits, teacher = _pair(54)
    value, gradient = through_the_head(
        Term(name="distillation", objective=spec, support=FullSupport()),
        logits,
        FIRST,
        **teacher_fields(teacher, FIRST, full=True),
    )
    direct = lambda policy: _values(spec, policy, teacher)  # noqa: E731
    assert value.item() == pytest.approx(direct(logits.log_softmax(-1)).sum().item(), abs=1e-12)
    torch.testing.assert_close(gradient, gradient_at(logits, direct), atol=1e-12, rtol=0)
