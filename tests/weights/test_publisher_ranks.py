"""A publication from two gloo ranks: one outcome for both, a repeat that stays a collective, the real learner's names."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.errors import HoldfastError, WeightTransferError
from cluster.transfer.snapshot import read_snapshot
from services.weights.publisher import Publisher
from tests.tiny_models import DirectClient, tiny_engine, tiny_model


class ShardedLearner:
    """Two parameters, each rank holding half of the first; gathering needs every rank."""

    def __init__(self, rank: int):
        self._rank = rank
        self.passes = 0

    def named_full_parameters(self):
        self.passes += 1
        halves = [torch.empty(2), torch.empty(2)]
        dist.all_gather(halves, torch.full((2,), float(self._rank)))
        yield "model.embed_tokens.weight", torch.cat(halves)
        yield "lm_head.weight", torch.cat(halves) + 10

    def parameter_metadata(self):
        return [("model.embed_tokens.weight", torch.float32, (4,)), ("lm_head.weight", torch.float32, (4,))]


class TroubledClient:
    """Fails ``update_weights`` as often as it is told, with the reason it is told."""

    def __init__(self, failures: int, reason: str):
        self._failures, self._reason = failures, reason
        self.calls: list[str] = []
        self.version = None

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        self.calls.append(f"init {len(init_info['names'])}")

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, update_info: dict) -> None:
        self.calls.append("update")
        if self._failures > 0:
            self._failures -= 1
            raise WeightTransferError("an engine failed", reason=self._reason)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append(f"finish {weight_version}")

    def drain(self) -> None:
        self.calls.append("drain")


SCENARIOS = {
    "whole": (0, ""),
    "fails once": (1, "publication_failed"),
    "fails always": (9, "publication_failed"),
    "incomplete": (1, "publication_incomplete"),
    "engine lost": (1, "rollout_worker_lost"),
}


def rank_main(rank: int, store: str, folder: str, answers) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name, (failures, reason) in SCENARIOS.items():
        client, learner = TroubledClient(failures, reason), ShardedLearner(rank)
        publisher = Publisher(
            learner, rank=rank, world_size=2, workers=[], backend="shared_memory", folder=Path(folder), client=client
        )
        try:
            publication = publisher.publish(5)
            outcome = None if publication is None else (publication.version, publication.num_tensors, str(publication.snapshot))
        except HoldfastError as error:
            outcome = error.reason
        answers.put((name, rank, outcome, client.calls, learner.passes))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[int, tuple]]]:
    """Scenario -> rank -> (outcome, calls to the engines, passes over the weights)."""
    folder = tmp_path_factory.mktemp("ranks")
    context = mp.get_context("spawn")
    answers = context.Queue()
    arguments = (str(folder / "store"), str(folder / "weights"), answers)
    processes = [context.Process(target=rank_main, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    found: dict[str, dict[int, tuple]] = {name: {} for name in SCENARIOS}
    try:
        for _ in range(2 * len(SCENARIOS)):
            name, rank, *rest = answers.get(timeout=120)
            found[name][rank] = tuple(rest)
    except queue.Empty:
        pytest.fail("the ranks wait for each other")
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    yield found


def test_both_ranks_gather_and_the_first_sends(outcomes: dict):
    (sent, calls, _), (nothing, no_calls, _) = outcomes["whole"][0], outcomes["whole"][1]
    assert sent[:2] == (5, 2) and nothing is None
    assert calls == ["init 2", "start", "update", "finish 5"] and no_calls == []
    stored = read_snapshot(Path(sent[2]))
    assert stored["model.embed_tokens.weight"].tolist() == [0, 0, 1, 1] and stored["lm_head.weight"].tolist() == [10, 10, 11, 11]


def test_a_send_that_failed_is_drained_and_repeated_by_both(outcomes: dict):
    ranks = outcomes["fails once"]
    assert ranks[0][0][:2] == (5, 2) and ranks[1][0] is None
    assert ranks[0][1] == ["init 2", "start", "update", "drain", "start", "update", "finish 5"]
    assert ranks[0][2] == ranks[1][2] == 2


@pytest.mark.parametrize(("name", "passes"), [("fails always", 2), ("incomplete", 1), ("engine lost", 1)])
def test_an_error_of_the_first_rank_is_everyones(outcomes: dict, name: str, passes: int):
    ranks = outcomes[name]
    assert ranks[0][0] == ranks[1][0] == SCENARIOS[name][1]
    assert ranks[0][2] == ranks[1][2] == passes


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_real_learner_and_a_real_engine_agree(tied: bool, tmp_path: Path):
    from services.weights.parity import ParityProbe
    from tests.weights.conftest import PROMPTS, Pair
    from trainer.learner import Learner, LearnerSettings

    engine = tiny_engine(tied)
    engine.drain()
    settings = LearnerSettings(model_folder=str(tiny_model(tied)), device="cpu", dtype="float32", micro_batch_tokens=512, seed=0)
    learner = Learner(settings)
    try:
        pair = Pair(engine, learner, DirectClient(engine), tmp_path, tied)
        with torch.no_grad():
            for parameter in learner.model.parameters():
                parameter.mul_(1.05)
        publication = pair.publisher().publish(40)
        probe = ParityProbe([], PROMPTS)
        sample = pair.sample(probe)
        assert probe.compare(sample, pair.score(sample)) < 1e-4
        print(f"parity of learner and engine, {tied=}: {probe.max_abs_nats:.1e} nats")
        assert "lm_head.weight" in read_snapshot(publication.snapshot)
    finally:
        learner.close()
