"""Two ranks and one rank: the same gradient, the same update, the same state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
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

NUM_STEPS = 3
MODELS = ("tied", "untied")


def _shards(step: int, num_ranks: int) -> list[BatchShard]:
    """On two ranks very uneven: rank 0 has one sample, and in step 1 none at all."""
    samples = make_samples(9, seed=step)
    counts = term_counts(samples)
    if num_ranks == 1:
        (parts,) = distribute(samples, num_ranks=1, micro_batch_tokens=64)
        return [BatchShard(micro_batches=parts, term_counts=counts, teacher_head=teacher_head())]
    own = [] if step == 1 else samples[:1]
    (rest,) = distribute(samples[len(own) :], num_ranks=1, micro_batch_tokens=30)
    first = ((tuple(own),) if own else ()) + ((),) * (len(rest) - (1 if own else 0))
    split = {name: 0.25 * value for name, value in counts.items()}
    remainder = {name: 0.75 * value for name, value in counts.items()}
    return [
        BatchShard(micro_batches=first, term_counts=split, teacher_head=teacher_head() if own else None),
        BatchShard(micro_batches=rest, term_counts=remainder, teacher_head=teacher_head()),
    ]


def _two_ranks(rank: int, root: str) -> None:
    """What each spawned process runs: both models, one after the other, in one group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    for name in MODELS:
        _train(rank, 2, Path(root) / name)
    dist.destroy_process_group()


def _train(rank: int, world_size: int, folder: Path) -> None:
    learner = make_learner(folder / "model", rank=rank, world_size=world_size)
    learner.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True)
    learner.keep_gradient = True
    reports = []
    for step in range(NUM_STEPS):
        reports.append(learner.step(_shards(step, world_size)[rank]))
        if step == 0 and rank == 0:
            save_file(learner.last_gradient, str(folder / f"gradient{world_size}.safetensors"))
    logprobs = learner.sequence_logprobs([make_samples(1)[0].prompt_token_ids], [make_samples(1)[0].completion_token_ids], temperature=1.0)
    learner.save_state(folder / f"state{world_size}")
    tensors = dict(learner.named_full_parameters())
    if world_size == 2:
        learner.load_state(folder / "state1")
        moved = dict(learner.named_full_parameters())
    if rank == 0:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, str(folder / f"weights{world_size}.safetensors"))
        if world_size == 2:
            save_file({name: tensor.contiguous().clone() for name, tensor in moved.items()}, str(folder / "moved.safetensors"))
    record = {"metrics": [report.metrics for report in reports], "applied": [report.applied for report in reports], "logprobs": logprobs[0].tolist()}
    (folder / f"report{world_size}.{rank}.json").write_text(json.dumps(record))
    dist.barrier()
    learner.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """One rank in this process, then two spawned ones (most of their time is imports)."""
    root = tmp_path_factory.mktemp("ranks")
    for name in MODELS:
        save_tiny_model(root / name / "model", tied=name == "tied")
        _train(0, 1, root / name)
    multiprocessing.spawn(_two_ranks, args=(str(root),), nprocs=2, join=True)
    return root


@pytest.fixture(params=["tied", "untied"])
def runs(trained, request) -> Path:
    return trained / request.param


def _report(root: Path, world_size: int, rank: int = 0) -> dict:
    return json.loads((root / f"report{world_size}.{rank}.json").read_text())


def test_first_gradient_is_the_same_on_one_and_two_ranks(runs):
    one, two = (load_file(runs / f"gradient{world_size}.safetensors") for world_size in (1, 2))
    assert set(one) == set(two)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6 * max(1.0, float(value.abs().max())), rtol=0, msg=name)


def test_metrics_are_global_and_equal_on_every_rank(runs):
    one, first, second = _report(runs, 1), _report(runs, 2, 0), _report(runs, 2, 1)
    assert first["applied"] == second["applied"] == one["applied"] == [True] * NUM_STEPS
    for step in range(NUM_STEPS):
        assert set(first["metrics"][step]) == set(one["metrics"][step])
        for name, value in one["metrics"][step].items():
            if name.startswith("seconds/"):
                continue
            assert first["metrics"][step][name] == second["metrics"][step][name]
            assert first["metrics"][step][name] == pytest.approx(value, rel=2e-4, abs=1e-6), (step, name)
        assert first["metrics"][0]["gradient/norm"] == pytest.approx(one["metrics"][0]["gradient/norm"], rel=1e-6)
        for name in (name for name in one["metrics"][0] if name.startswith("gradient/norm_of/")):
            assert first["metrics"][0][name] == pytest.approx(one["metrics"][0][name], rel=1e-6)


def test_weights_after_three_steps_agree(runs):
    one, two = (load_file(runs / f"weights{world_size}.safetensors") for world_size in (1, 2))
    for name, value in one.items():
        # Adam divides by the gradient's own size, which magnifies rounding where a gradient is nearly zero
        torch.testing.assert_close(two[name], value, atol=2 * OPTIMIZER.lr, rtol=0, msg=name)
        assert float((two[name] - value).abs().mean()) < 2e-6
    assert _report(runs, 2, 0)["logprobs"] == _report(runs, 2, 1)["logprobs"]
    assert _report(runs, 2)["logprobs"] == pytest.approx(_report(runs, 1)["logprobs"], abs=1e-3)


def test_state_of_one_rank_loads_on_two(runs):
    one, moved = load_file(runs / "weights1.safetensors"), load_file(runs / "moved.safetensors")
    for name, value in one.items():
        assert torch.equal(moved[name], value), name
    saved_by_one, saved_by_two = (load_file(runs / f"state{world_size}" / "optimizer.safetensors") for world_size in (1, 2))
    for name, value in saved_by_one.items():
        assert saved_by_two[name].shape == value.shape
        assert float((saved_by_two[name] - value).abs().max()) < 1e-4 * max(1.0, float(value.abs().max())), name
