"""The L2 anchor: its gradient and value by definition, where theta_0 is, and that a resumed stage keeps it."""

from __future__ import annotations

import pytest
import torch
from tiny_policy import (
    COMPOSITION,
    OPTIMIZER,
    TEMPERATURE,
    make_learner,
    make_samples,
    save_tiny_model,
    teacher_head,
    term_counts,
)

from cluster.messages import BatchShard
from cluster.spec.composition import L2Anchor
from trainer.balancing import distribute

COEFFICIENT = 0.03
PLAIN = COMPOSITION
AT_START = COMPOSITION.model_copy(update={"l2_anchor": L2Anchor(coefficient=COEFFICIENT)})
AT_BASE = COMPOSITION.model_copy(update={"l2_anchor": L2Anchor(to="base", coefficient=COEFFICIENT)})


def _shard(seed: int = 0) -> BatchShard:
    samples = make_samples(6, seed=seed)
    (micro_batches,) = distribute(samples, num_ranks=1, micro_batch_tokens=64)
    return BatchShard(micro_batches=micro_batches, term_counts=term_counts(samples), teacher_head=teacher_head())


def _begin(learner, composition, **fields) -> None:
    learner.begin_stage(composition, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True, **fields)
    learner.keep_gradient = True


def _weights(learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.named_full_parameters()}


def _squared(first: dict, second: dict, learner) -> float:
    return sum(float((first[name] - second[name]).double().square().sum()) for name in learner._parameters)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folders(tmp_path, request):
    """A base model, and a policy that has moved away from it."""
    return [save_tiny_model(tmp_path / name, tied=request.param, seed=seed) for seed, name in enumerate(("base", "moved"))]


def _plain_step(folders):
    """Report and gradient without an anchor, from the moved weights."""
    learner = make_learner(folders[0])
    learner.load_policy(folders[1])
    _begin(learner, PLAIN)
    report = learner.step(_shard())
    learner.close()
    return report, learner.last_gradient


@pytest.mark.parametrize("composition", [AT_START, AT_BASE], ids=["stage_start", "base"])
def test_the_gradient_is_that_of_the_loss_and_the_pull(folders, composition):
    plain, gradient = _plain_step(folders)
    learner = make_learner(folders[0])
    if composition is AT_START:
        _begin(learner, composition)
    origin = _weights(learner)
    learner.load_policy(folders[1])
    if composition is AT_BASE:
        _begin(learner, composition)
    moved = _weights(learner)
    report = learner.step(_shard())
    for name, value in gradient.items():
        expected = value + COEFFICIENT * (moved[name] - origin[name])
        torch.testing.assert_close(learner.last_gradient[name], expected, atol=1e-6 * max(1.0, float(value.abs().max())), rtol=0, msg=name)
    squared = _squared(moved, origin, learner)
    assert squared > 1.0
    assert report.metrics["drift/l2_from_anchor"] == pytest.approx(squared**0.5, rel=1e-6)
    assert report.metrics["loss/l2_anchor"] == pytest.approx(0.5 * COEFFICIENT * squared, rel=1e-6)
    assert report.loss == pytest.approx(plain.loss + 0.5 * COEFFICIENT * squared, rel=1e-6)
    norm = sum(float(value.double().square().sum()) for value in learner.last_gradient.values()) ** 0.5
    assert report.gradient_norm == pytest.approx(norm, rel=1e-6)
    assert "loss/l2_anchor" not in plain.metrics and "anchor/squared" not in report.metrics
    learner.close()


def test_at_the_stages_start_nothing_pulls_and_later_it_does(folders):
    learner = make_learner(folders[0])
    _begin(learner, AT_START)
    start = _weights(learner)
    first = learner.step(_shard())
    assert first.metrics["drift/l2_from_anchor"] == 0.0 and first.metrics["loss/l2_anchor"] == 0.0
    moved = _weights(learner)
    second = learner.step(_shard(1))
    assert second.metrics["drift/l2_from_anchor"] == pytest.approx(_squared(moved, start, learner) ** 0.5, rel=1e-5) and second.loss != first.loss
    # the next stage begins where this one ended
    _begin(learner, AT_START)
    assert learner.step(_shard(2)).metrics["drift/l2_from_anchor"] == 0.0
    # and one without an anchor knows nothing of it
    _begin(learner, PLAIN)
    assert "drift/l2_from_anchor" not in learner.step(_shard(3)).metrics
    learner.close()


@pytest.mark.parametrize("composition", [AT_START, AT_BASE], ids=["stage_start", "base"])
@pytest.mark.parametrize("load_first", [True, False], ids=["load then begin", "begin then load"])
def test_a_resumed_stage_keeps_its_anchor(tmp_path, folders, composition, load_first):
    straight = make_learner(folders[0])
    straight.load_policy(folders[1])
    _begin(straight, composition)
    for seed in range(2):
        straight.step(_shard(seed))
    straight.save_state(tmp_path / "state")
    assert (tmp_path / "state" / "anchor.safetensors").is_file() == (composition is AT_START)
    expected = straight.step(_shard(2))

    resumed = make_learner(folders[0])
    if load_first:
        resumed.load_state(tmp_path / "state")
    resumed.begin_stage(composition, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=False, resumed=True)
    if not load_first:
        resumed.load_state(tmp_path / "state")
    got = resumed.step(_shard(2))
    assert got.metrics["drift/l2_from_anchor"] == expected.metrics["drift/l2_from_anchor"] > 0.0
    assert got.loss == expected.loss
    weights = _weights(straight)
    for name, value in _weights(resumed).items():
        assert torch.equal(value, weights[name]), name
    straight.close()


def test_a_stage_that_is_resumed_without_its_anchor_is_refused(tmp_path, folders):
    learner = make_learner(folders[0])
    _begin(learner, PLAIN)
    learner.save_state(tmp_path / "state")
    _begin(learner, AT_START)
    learner.load_state(tmp_path / "state")
    learner.begin_stage(AT_START, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True, resumed=True)
    with pytest.raises(ValueError, match="l2_anchor"):
        learner.step(_shard())
    learner.close()


def test_a_step_without_a_live_row_is_not_pulled_either(folders):
    learner = make_learner(folders[0])
    _begin(learner, AT_START)
    learner.load_policy(folders[1])
    before = _weights(learner)
    report = learner.step(BatchShard(micro_batches=((),), term_counts={"pg": 8.0, "jsd": 0.0, "top": 0.0}))
    assert not report.applied and report.gradient_norm == 0.0 and report.metrics["drift/l2_from_anchor"] > 1.0
    for name, value in _weights(learner).items():
        assert torch.equal(value, before[name])
    learner.close()
