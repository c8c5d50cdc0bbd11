"""Saving and loading: a resumed run is the same run, bit for bit, and no file is a pickle."""

from __future__ import annotations

import json

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
from trainer.balancing import distribute


def _shard(seed: int) -> BatchShard:
    samples = make_samples(6, seed=seed)
    (micro_batches,) = distribute(samples, num_ranks=1, micro_batch_tokens=64)
    return BatchShard(micro_batches=micro_batches, term_counts=term_counts(samples), teacher_head=teacher_head())


def _started(folder, *, reset: bool = True, seed: int = 0):
    learner = make_learner(folder, seed=seed)
    learner.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=reset)
    return learner


def _weights(learner):
    return {name: tensor.clone() for name, tensor in learner.named_full_parameters()}


@pytest.mark.parametrize("load_first", [True, False], ids=["load then begin", "begin then load"])
@pytest.mark.parametrize("tied", [True, False])
def test_three_steps_save_load_three_steps_equal_six(tmp_path, tied, load_first):
    folder = save_tiny_model(tmp_path / "model", tied=tied)
    straight = _started(folder)
    for seed in range(3):
        straight.step(_shard(seed))
    straight.save_state(tmp_path / "state")
    drawn = torch.rand(4)
    reports = [straight.step(_shard(seed)) for seed in range(3, 6)]

    resumed = make_learner(folder, seed=99)
    if load_first:
        resumed.load_state(tmp_path / "state")
    resumed.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=False)
    if not load_first:
        resumed.load_state(tmp_path / "state")
    assert torch.equal(torch.rand(4), drawn)
    again = [resumed.step(_shard(seed)) for seed in range(3, 6)]

    assert [report.loss for report in again] == [report.loss for report in reports]
    assert [report.metrics["optimizer/learning_rate"] for report in again] == [OPTIMIZER.lr, OPTIMIZER.lr, OPTIMIZER.lr]
    expected = _weights(straight)
    for name, value in _weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    straight.close()


def test_state_is_safetensors_and_json(tmp_path):
    learner = _started(save_tiny_model(tmp_path / "model", tied=True))
    learner.step(_shard(0))
    learner.save_state(tmp_path / "state")
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        "optimizer.safetensors",
        "policy.safetensors",
        "rng.safetensors",
        "state.json",
    ]
    assert json.loads((tmp_path / "state" / "state.json").read_text())["optimizer_steps"] == 1
    learner.save_policy(tmp_path / "policy")
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    learner.close()


def test_reset_forgets_the_optimizer_and_keep_does_not(tmp_path):
    learner = _started(save_tiny_model(tmp_path / "model", tied=True))
    learner.step(_shard(0))
    learner.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=False)
    name = next(iter(learner._parameters))
    assert learner._optimizer.steps_taken == 1
    assert float(learner._optimizer.moment(name, "exp_avg").full_tensor().abs().max()) > 0
    learner.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True)
    assert learner._optimizer.steps_taken == 0
    assert float(learner._optimizer.moment(name, "exp_avg").full_tensor().abs().max()) == 0
    learner.close()


def test_load_policy_takes_weights_alone_and_refuses_what_does_not_fit(tmp_path):
    folder = save_tiny_model(tmp_path / "model", tied=False)
    learner = _started(folder)
    base = _weights(learner)
    learner.step(_shard(0))
    learner.load_policy(folder)
    for name, value in _weights(learner).items():
        assert torch.equal(value, base[name])
    assert learner._optimizer.steps_taken == 1
    other = save_tiny_model(tmp_path / "other", tied=False, num_hidden_layers=1)
    with pytest.raises(ValueError, match="missing"):
        learner.load_policy(other)
    wider = save_tiny_model(tmp_path / "wider", tied=False, intermediate_size=40)
    with pytest.raises(ValueError, match="does not fit"):
        learner.load_policy(wider)
    learner.close()
