"""Hybrids of every kind of term, from packing to the gradient: the same on any ranks, packed or not, at any micro-batch size.

The learners hold float64 weights here, so that rounding does not hide what a bound of 1e-6 would not show.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from hybrid_cases import CASES, EVERYTHING, pack_batch
from safetensors.torch import load_file, save_file
from tiny_policy import OPTIMIZER, TEMPERATURE, make_learner, save_tiny_model

from cluster.messages import BatchShard
from cluster.spec.composition import Composition, Term
from cluster.spec.objectives import EntropyBonus, PolicyGradient, ReferenceKL
from trainer.modeling.policy_model import PolicyModel

TOLERANCE = 1e-6
UPDATES = {"everything": 2, "joined": 1, "own_top_k": 1, "teachers_top_k": 1}


def _make_learner(folder: Path, **place):
    with patch("trainer.learner.PolicyModel.load", functools.partial(PolicyModel.load, dtype=torch.float64)):
        return make_learner(folder, **place)


def _begin(learner, composition, *, resumed: bool = False) -> None:
    learner.begin_stage(composition, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True, resumed=resumed)
    learner.keep_gradient = True


def _gradients(learner, shards: list[BatchShard]) -> tuple[list[dict], list[dict]]:
    """Gradient and metrics of every update, each from the same weights."""
    before = {name: tensor.clone() for name, tensor in learner.named_full_parameters()}
    gradients, metrics = [], []
    for shard in shards:
        report = learner.step(shard)
        assert report.applied and report.finite
        gradients.append(learner.last_gradient)
        metrics.append(report.metrics)
        with torch.no_grad():
            learner._take_weights(iter(before.items()), where="test")
    return gradients, metrics


def _run(name: str, root: Path, *, rank: int, num_ranks: int, budget: int) -> None:
    """Away from the stage's start, so that the anchor pulls; on two ranks the stage and its anchor come from a saved state."""
    learner = _make_learner(root / "model", rank=rank, world_size=num_ranks)
    if num_ranks == 1:
        _begin(learner, CASES[name])
        learner.load_policy(root / "moved")
        learner.save_state(root / name / "state")
    else:
        learner.load_state(root / name / "state")
        _begin(learner, CASES[name], resumed=True)
    packed = pack_batch(CASES[name], num_ranks=num_ranks, budget=budget, updates=UPDATES[name])
    gradients, metrics = _gradients(learner, [shards[rank] for shards in packed.updates])
    completions = [np.arange(n, dtype=np.int32) for n in (3, 30, 1, 9, 20)]
    scores = learner.sequence_scores([np.arange(4, dtype=np.int32)] * 5, completions, temperature=1.3, entropies=True)
    if rank == 0:
        for update, gradient in enumerate(gradients):
            save_file(gradient, str(root / name / f"gradient{num_ranks}.{update}.safetensors"))
    record = {"metrics": metrics, "scores": [[s.logprobs.tolist(), s.entropies.tolist()] for s in scores]}
    (root / name / f"report{num_ranks}.{rank}.json").write_text(json.dumps(record))
    learner.close()


def _two_ranks(rank: int, root: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    for name in CASES:
        _run(name, Path(root), rank=rank, num_ranks=2, budget=30)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hybrids")
    save_tiny_model(root / "model", tied=False)
    save_tiny_model(root / "moved", tied=False, seed=1)
    for name in CASES:
        (root / name).mkdir()
        _run(name, root, rank=0, num_ranks=1, budget=10_000)
    multiprocessing.spawn(_two_ranks, args=(str(root),), nprocs=2, join=True)
    return root


def _assert_same(got: dict, expected: dict, where: str) -> None:
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=TOLERANCE, rtol=0, msg=f"{where}: {name}")


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_gradient_of_one(root, name):
    for update in range(UPDATES[name]):
        one, two = (load_file(root / name / f"gradient{ranks}.{update}.safetensors") for ranks in (1, 2))
        assert max(float(value.abs().max()) for value in one.values()) > 1e-3
        _assert_same(two, one, name)


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_global_and_equal_on_every_rank(root, name):
    one, first, second = (json.loads((root / name / f"report{place}.json").read_text()) for place in ("1.0", "2.0", "2.1"))
    assert first["scores"] == second["scores"]
    for expected, got in zip(one["scores"], first["scores"], strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    for update in range(UPDATES[name]):
        values, mine, others = (report["metrics"][update] for report in (one, first, second))
        assert set(values) == set(mine) == set(others)
        for metric in (metric for metric in values if not metric.startswith("seconds/")):
            assert mine[metric] == others[metric]
            if metric != "tokens/forward":
                assert mine[metric] == pytest.approx(values[metric], rel=2e-5, abs=2e-6), metric
        assert all(f"loss/{term.name}" in values for term in CASES[name].terms)
        assert 0 < values["tokens/forward"] <= values["tokens/trained"]


@pytest.fixture(scope="module")
def learner(root):
    built = _make_learner(root / "moved")
    yield built
    built.close()


@pytest.mark.parametrize("budget", [1, 25, 60])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_does_not_depend_on_packing(learner, name, budget):
    """A budget of 1 is one completion at a time: nothing is packed."""
    _begin(learner, CASES[name])
    gradients = []
    for size in (10_000, budget):
        packed = pack_batch(CASES[name], budget=size, updates=UPDATES[name])
        shards = [shard for (shard,) in packed.updates]
        assert (max(len(part) for shard in shards for part in shard.micro_batches) == 1) == (size == 1)
        gradients.append(_gradients(learner, shards)[0])
    for whole, cut in zip(*gradients, strict=True):
        _assert_same(cut, whole, name)


def test_an_equal_group_has_the_gradient_of_the_penalties_alone(learner):
    """T10: the policy-gradient term is exactly zero there, the other terms are what they are without it."""
    penalties = (Term(name="reference", objective=ReferenceKL(), coefficient=0.1), Term(name="bonus", objective=EntropyBonus(), coefficient=0.05))
    gradients = []
    for terms in ((Term(name="pg", objective=PolicyGradient()), *penalties), penalties):
        composition = Composition(terms=terms)
        _begin(learner, composition)
        gradients += _gradients(learner, [pack_batch(composition, equal_scores=True).updates[0][0]])[0]
    _assert_same(gradients[0], gradients[1], "penalties")
    alone = Composition(terms=(Term(name="pg", objective=PolicyGradient()),))
    _begin(learner, alone)
    report = learner.step(pack_batch(alone, equal_scores=True).updates[0][0])
    assert not report.applied and report.gradient_norm == 0.0


def test_updates_of_a_batch_are_the_batch(root):
    """Gradients of the parts, weighed by their denominators, add up to that of the whole."""
    composition = Composition(terms=(Term(name="bonus", objective=EntropyBonus(), importance_cap=None),))
    built = _make_learner(root / "moved")
    _begin(built, composition)
    (whole,), _ = _gradients(built, [pack_batch(composition).updates[0][0]])
    packed = pack_batch(composition, updates=3)
    parts, _ = _gradients(built, [shards[0] for shards in packed.updates])
    counts = [shards[0].term_counts["bonus"] for shards in packed.updates]
    assert len(set(counts)) > 1
    added = {name: sum(part[name] * count for part, count in zip(parts, counts, strict=True)) / sum(counts) for name in whole}
    _assert_same(added, whole, "updates")
    built.close()


def test_the_hybrid_reaches_every_part_that_it_names():
    """Otherwise the tests above would compare nothing."""
    packed = pack_batch(EVERYTHING, updates=2)
    samples = [sample for shards in packed.updates for part in shards[0].micro_batches for sample in part]
    assert {name for sample in samples for name in sample.term_weights} == {term.name for term in EVERYTHING.terms}
    assert all(sample.old_logprobs is not None and sample.reference_logprobs is not None for sample in samples)
    for name in ("random", "skip_first", "entropy_quantile", "pattern"):
        assert any(0.0 < value < 1.0 for metric, value in packed.metrics.items() if metric.endswith(f"/{name}/kept_share")), name
    assert 0.0 < packed.metrics["batch/target_share"] < 1.0
