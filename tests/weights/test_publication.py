"""Publications into real engines: whole, versioned, recoverable; and each way of breaking one has its reason code."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cluster.errors import ParityError, WeightTransferError
from cluster.transfer.backend import check_announced
from cluster.transfer.snapshot import read_snapshot, snapshot_path, snapshot_version, write_snapshot
from services.weights.parity import ParityProbe
from tests.tiny_models import PlainLearner
from tests.weights.conftest import PROMPTS, Pair

PARITY_NATS = 1e-5
"""What float32 on both sides gives on a random model, with some room."""


class Mutated:
    """A learner that leaves tensors out, adds one, or cuts one short; ``declared`` too when it lies consistently."""

    def __init__(self, learner: PlainLearner, *, leave_out: str = "", add: str = "", cut: str = "", declared: bool = False):
        self._learner, self._out, self._add, self._cut, self._declared = learner, leave_out, add, cut, declared

    def _change(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._learner.named_full_parameters():
            if name != self._out:
                yield name, tensor[:-1] if name == self._cut else tensor
        if self._add:
            yield self._add, torch.zeros(3)

    def named_full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._change()

    def parameter_metadata(self) -> list:
        if not self._declared:
            return self._learner.parameter_metadata()
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._change()]


def test_a_publication_brings_the_engine_to_the_learner(pair: Pair):
    publisher = pair.publisher()
    for version in (2, 3):
        pair.learner.perturb(seed=version)
        assert pair.difference() > 0.01  # stale before
        publication = publisher.publish(version)
        difference = pair.difference()
        print(f"parity after publication {version}, {pair.tied=}: {difference:.1e} nats")
        assert difference < PARITY_NATS
        assert publication.version == version
        assert publication.num_tensors == len(pair.learner.parameter_metadata())
        assert publication.bytes == publication.snapshot.stat().st_size > 3_000_000
        assert set(pair.sample().policy_versions) == {version}
        assert pair.engine.info()["policy_version"] == version
    assert publisher.last_snapshot == publication.snapshot


def test_the_snapshot_holds_the_fp32_masters_under_checkpoint_names(pair: Pair):
    publication = pair.publisher().publish(9)
    stored = read_snapshot(publication.snapshot)
    sent = dict(pair.learner.named_full_parameters())
    assert stored.keys() == sent.keys() and "lm_head.weight" in stored
    assert all(torch.equal(stored[name], sent[name]) for name in sent)
    assert snapshot_version(publication.snapshot) == 9


def test_a_publication_is_fast(pair: Pair):
    publisher = pair.publisher()
    publisher.publish(2)
    seconds = []
    for version in range(3, 8):
        started = time.perf_counter()
        publisher.publish(version)
        seconds.append(time.perf_counter() - started)
    print(f"publication of {pair.tied=}: median {np.median(seconds) * 1e3:.0f} ms, best {min(seconds) * 1e3:.0f} ms")
    assert min(seconds) < 0.3


def test_old_snapshots_go(pair: Pair):
    publisher = pair.publisher()
    for version in (2, 3, 4, 5):
        publisher.publish(version)
    assert sorted(pair.folder.iterdir()) == [snapshot_path(pair.folder, 4), snapshot_path(pair.folder, 5)]


@pytest.mark.parametrize(
    ("mutation", "named"),
    [
        ({"leave_out": "model.layers.2.mlp.up_proj.weight"}, "model.layers.2.mlp.up_proj.weight"),
        ({"leave_out": "lm_head.weight"}, "lm_head.weight"),
        ({"leave_out": "model.norm.weight"}, "model.norm.weight"),
        ({"add": "model.extra.weight"}, "model.extra.weight"),
        ({"cut": "model.layers.0.self_attn.q_proj.weight"}, "model.layers.0.self_attn.q_proj.weight"),
    ],
)
@pytest.mark.parametrize("stage", ["learner", "engine", "announcement"])
def test_a_publication_that_is_not_whole_is_refused_and_changes_nothing(pair: Pair, mutation: dict, named: str, stage: str):
    if stage == "learner":  # the learner sends something else than it declared
        send = lambda: pair.publisher(Mutated(pair.learner, **mutation)).publish(2)  # noqa: E731
    elif stage == "engine":  # the file is not what was announced
        tensors = list(Mutated(pair.learner, **mutation).named_full_parameters())
        send = lambda: update_by_hand(pair, tensors, finish=True)  # noqa: E731
    else:  # learner and announcement agree, and both are wrong
        if "add" in mutation:
            pytest.skip("an engine does not know of more than its checkpoint")
        send = lambda: pair.publisher(Mutated(pair.learner, **mutation, declared=True)).publish(2)  # noqa: E731
    with pytest.raises(WeightTransferError, match=named) as caught:
        send()
    assert caught.value.reason == "publication_incomplete"
    pair.publisher().drain()
    assert pair.engine.info()["policy_version"] == 1
    assert not pair.engine.info()["must_publish"]
    assert pair.difference() < PARITY_NATS  # still publication 1, whole
    pair.publisher().publish(3)
    assert pair.difference() < PARITY_NATS


def update_by_hand(pair: Pair, tensors: list, *, finish: bool, num_tensors: int | None = None) -> None:
    """The calls of a learner up to where it is killed."""
    path = write_snapshot(pair.folder, 2, tensors)
    pair.client.start_weight_update()
    pair.client.update_weights({"path": str(path), "version": 2, "num_tensors": num_tensors or len(tensors)})
    if finish:
        pair.client.finish_weight_update("2")


def test_killed_after_start(pair: Pair):
    pair.client.start_weight_update()
    with pytest.raises(WeightTransferError, match="update is open"):
        pair.sample()
    pair.publisher().drain()
    assert_recovers(pair)


def test_killed_after_a_partial_update(pair: Pair):
    tensors = list(pair.learner.named_full_parameters())
    with pytest.raises(WeightTransferError) as caught:
        update_by_hand(pair, tensors[: len(tensors) // 2], finish=False)
    assert caught.value.reason == "publication_incomplete"
    pair.publisher().drain()
    assert_recovers(pair)


def test_killed_between_update_and_finish(pair: Pair):
    pair.learner.perturb(seed=5)
    update_by_hand(pair, list(pair.learner.named_full_parameters()), finish=False)
    pair.publisher().drain()
    with pytest.raises(WeightTransferError, match="publish again"):
        pair.sample()
    pair.engine.probe()
    assert_recovers(pair)


def test_a_drain_without_anything_open_is_harmless(pair: Pair):
    pair.publisher().drain()
    assert pair.difference() < PARITY_NATS


def test_a_half_open_update_is_drained_and_sent_whole_again(pair: Pair):
    pair.learner.perturb(seed=6)
    pair.client.start_weight_update()  # a start of the next learner would raise 'already active'
    publication = pair.publisher().publish(2)
    assert publication.version == 2 and pair.difference() < PARITY_NATS


def test_a_load_that_fails_half_way_leaves_nothing_to_sample_from(pair: Pair):
    tensors = dict(pair.learner.named_full_parameters())
    path = write_snapshot(pair.folder, 2, tensors.items())
    with open(path, "r+b") as file:  # the header stays whole, the data does not
        file.truncate(path.stat().st_size // 2)
    pair.client.start_weight_update()
    with pytest.raises(Exception):  # noqa: B017 - safetensors' own error
        pair.client.update_weights({"path": str(path), "version": 2, "num_tensors": len(tensors)})
    pair.publisher().drain()
    assert_recovers(pair)


def assert_recovers(pair: Pair) -> None:
    pair.learner.perturb(seed=8)
    pair.publisher().publish(4)
    assert pair.difference() < PARITY_NATS
    assert set(pair.sample().policy_versions) == {4}


def test_a_stale_engine_fails_the_parity_probe(pair: Pair):
    probe = ParityProbe([], PROMPTS)
    sample = pair.sample(probe)
    assert probe.compare(sample, pair.score(sample)) < 1e-4
    pair.learner.perturb(seed=21)
    with pytest.raises(ParityError, match="the bound is") as caught:
        probe.compare(sample, pair.score(sample))
    assert caught.value.reason == "parity_exceeded"
    assert probe.max_abs_nats == caught.value.details["max_abs_nats"] > 0.01


def test_an_update_of_the_embedding_alone_is_what_the_probe_is_for(pair: Pair):
    """The silent trap: a tied engine keeps a packed copy of the output matrix, refreshed only under its own name."""
    old_head = pair.learner.model.lm_head.weight.detach().clone()
    with torch.no_grad():
        pair.learner.model.model.embed_tokens.weight.mul_(1.3)
    tensors = [
        (name, old_head if name == "lm_head.weight" else tensor) for name, tensor in pair.learner.named_full_parameters()
    ]
    update_by_hand(pair, tensors, finish=True)
    if pair.tied:
        assert pair.difference() > 0.01
        with pytest.raises(WeightTransferError, match=r"lm_head\.weight"):
            check_announced({name: tuple(t.shape) for name, t in tensors if name != "lm_head.weight"}, {})
    else:
        assert pair.difference() < PARITY_NATS
