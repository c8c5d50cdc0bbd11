"""The pool over real Ray actors: two engines and one learner's publication, then scripted workers that die, hang or raise."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import SpecError, WeightTransferError
from cluster.messages import GenerationRequest
from cluster.transfer.client import WorkerClient
from rollout.engines.base import EngineSampling
from rollout.pool import RolloutPool
from services.weights.parity import ParityProbe
from services.weights.publisher import Publisher
from tests.tiny_models import PlainLearner, engine_options

ray = pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[2]
SAMPLING = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}},
    )
    yield
    ray.shutdown()


def requests_of(num: int) -> list[GenerationRequest]:
    generator = np.random.default_rng(1)
    return [
        GenerationRequest(prompt_token_ids=generator.integers(3, 100, 4 + 3 * (i % 5)).astype(np.int32), num_completions=2, seed=10 * i)
        for i in range(num)
    ]


def test_two_workers_are_one_engine(cluster: None, tmp_path: Path):
    """Placement, publication over Ray, parity of each worker, and the same samples as from one worker."""
    group = ray.util.placement_group([{"CPU": 1}] * 2)
    pool = RolloutPool.create(2, options=engine_options(tied=True), placement_group=group)
    states = pool.wait_until_ready(deadline_s=240)
    assert len({state["pid"] for state in states}) == 2 and {state["policy_version"] for state in states} == {0}
    learner = PlainLearner(tied=True)
    learner.perturb(seed=4)
    publisher = Publisher(learner, rank=0, world_size=1, workers=pool.workers, backend="shared_memory", folder=tmp_path)
    publisher.publish(31)
    seconds = min(publisher.publish(version).seconds for version in (32, 33, 34))
    print(f"publication to 2 workers over Ray: {seconds * 1e3:.0f} ms")
    assert seconds < 0.3

    probe = ParityProbe(pool.workers, [request.prompt_token_ids for request in requests_of(3)])
    assert_both_hold(probe, learner, version=34)

    requests = requests_of(9)
    both, alone = pool.generate(requests, SAMPLING), RolloutPool(pool.workers[:1]).generate(requests, SAMPLING)
    for ours, theirs in zip(both, alone, strict=True):
        assert [c.token_ids.tolist() for c in ours] == [c.token_ids.tolist() for c in theirs]
        assert {c.policy_version for c in ours} == {34}

    pool.workers[0].start_weight_update.remote()  # a learner that is killed here
    with pytest.raises(WeightTransferError, match="update is open"):
        pool.generate(requests, SAMPLING)
    publisher.drain()
    publisher.publish(35)
    assert {c.policy_version for c in pool.generate(requests, SAMPLING)[0]} == {35}
    for worker in pool.workers:
        ray.kill(worker)
    ray.util.remove_placement_group(group)


def assert_both_hold(probe: ParityProbe, learner: PlainLearner, *, version: int) -> None:
    """Both engines give the learner's log-probabilities: within the probe's bound always, and to 1e-5 in two rounds of three.

    A wrong weight shows in every round. Once in several thousand rounds, on a loaded machine, an engine gave 3e-4 that was
    gone when it was asked again; what each engine gave is printed so that such a round can be looked into.
    """
    worst = []
    for number in range(3):
        sample = probe.sample(number)
        assert len(sample.completions) == 6 and set(sample.policy_versions) == {version}
        expected = learner.sequence_logprobs(sample.prompts, sample.completions, temperature=1.0)
        differences = [np.abs(ours - theirs) for ours, theirs in zip(sample.engine_logprobs, expected, strict=True)]
        print(f"round {number}, by sequence, the second engine's last:", [f"{difference.max():.1e}" for difference in differences])
        worst.append(probe.compare(sample, expected))
    assert sorted(worst)[1] < 1e-5


class ScriptedWorker:
    """Answers with its number and the prompt's first id; misbehaves on request."""

    def __init__(self, number: int, trouble: str = ""):
        self._number, self._trouble, self.calls = number, trouble, []

    def generate(self, requests, sampling):
        if self._trouble == "die":
            os._exit(1)
        if self._trouble == "hang":
            time.sleep(60)
        if self._trouble == "refuse":
            raise SpecError("a prompt is too long")
        if self._trouble == "raise":
            raise RuntimeError("the engine core stopped")
        return [(self._number, int(request.prompt_token_ids[0])) for request in requests]

    def init_weight_transfer_engine(self, init_info):
        self.calls.append(init_info)

    def finish_weight_update(self, weight_version=None):
        self.calls.append(weight_version)

    def start_weight_update(self):
        if self._trouble == "hang":
            time.sleep(60)
        if self._trouble == "die":
            os._exit(1)

    def seen(self):
        return self.calls


def workers_of(*troubles: str) -> list:
    actor = ray.remote(ScriptedWorker)
    workers = [actor.options(num_cpus=0).remote(number, trouble) for number, trouble in enumerate(troubles)]
    ray.get([worker.seen.remote() for worker in workers])  # deadlines are not for starting processes
    return workers


def marked_requests(num: int) -> list[GenerationRequest]:
    return [GenerationRequest(prompt_token_ids=np.array([i], dtype=np.int32), num_completions=1, seed=0) for i in range(num)]


def test_order_is_kept_and_the_load_is_even(cluster: None):
    results = RolloutPool(workers_of("", "", "")).generate(marked_requests(8), SAMPLING)
    assert [item for _, item in results] == list(range(8))
    assert sorted(np.bincount([worker for worker, _ in results]).tolist()) == [2, 3, 3]
    assert len(RolloutPool(workers_of("", "")).generate(marked_requests(1), SAMPLING)) == 1


@pytest.mark.parametrize(
    ("trouble", "message"), [("die", "died"), ("hang", "did not answer within"), ("raise", "the engine core stopped")]
)
def test_a_lost_worker_has_its_reason_and_does_not_hang_the_step(cluster: None, trouble: str, message: str):
    workers = workers_of("", trouble)
    started = time.monotonic()
    with pytest.raises(Exception, match=message) as caught:
        RolloutPool(workers, deadline_s=3).generate(marked_requests(4), SAMPLING)
    assert caught.value.reason == "rollout_worker_lost"
    assert time.monotonic() - started < 20
    for worker in workers:
        ray.kill(worker)


def test_a_dead_worker_is_reported_while_another_hangs(cluster: None):
    workers = workers_of("hang", "die")
    started = time.monotonic()
    with pytest.raises(Exception, match="died"):
        RolloutPool(workers, deadline_s=50).generate(marked_requests(4), SAMPLING)
    assert time.monotonic() - started < 30
    ray.kill(workers[0])


def test_a_refused_request_keeps_its_own_error(cluster: None):
    with pytest.raises(SpecError, match="too long") as caught:
        RolloutPool(workers_of("refuse", "")).generate(marked_requests(2), SAMPLING)
    assert caught.value.reason == "invalid_spec"


def test_the_client_gives_each_engine_its_ranks_and_passes_the_version(cluster: None):
    workers = workers_of("", "", "")
    client = WorkerClient(workers, ranks_per_worker=2)
    assert client.num_ranks == 6
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    client.finish_weight_update("8")
    client.version = 9
    client.finish_weight_update()  # as vLLM's NCCL trainer calls it
    seen = ray.get([worker.seen.remote() for worker in workers])
    assert [calls[0]["rank_offset"] for calls in seen] == [1, 3, 5]
    assert all(calls[1:] == ["8", "9"] for calls in seen)


@pytest.mark.parametrize(("trouble", "reason"), [("hang", "publication_failed"), ("die", "rollout_worker_lost")])
def test_the_client_has_a_deadline_and_names_a_dead_engine(cluster: None, trouble: str, reason: str):
    workers = workers_of("", trouble)
    with pytest.raises(WeightTransferError) as caught:
        WorkerClient(workers, deadline_s=3).start_weight_update()
    assert caught.value.reason == reason
    for worker in workers:
        ray.kill(worker)
