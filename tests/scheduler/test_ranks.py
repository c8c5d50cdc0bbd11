"""Ranks meet at the lead's value, and at the lead's error."""

from __future__ import annotations

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.errors import StageError
from services.scheduler.ranks import Ranks


def test_one_rank_needs_no_group():
    ranks = Ranks(0, 1)
    assert ranks.from_lead(lambda: 5) == 5
    assert ranks.scatter_from_lead(lambda: ["only"]) == "only"
    with pytest.raises(StageError):
        ranks.from_lead(_fail)


def _fail():
    raise StageError("the verifier failed", reason="verifier_failures")


def _two_ranks(rank: int, init_file: str, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    item = ranks.scatter_from_lead(lambda: ["a", "b"])
    try:
        ranks.from_lead(_fail)
        reason = "nothing was raised"
    except StageError as error:
        reason = error.reason
    results[rank] = (item, reason)
    dist.destroy_process_group()


def test_an_error_of_the_lead_is_raised_on_every_rank(tmp_path):
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_two_ranks, args=(str(tmp_path / "store"), results), nprocs=2)
        assert dict(results) == {0: ("a", "verifier_failures"), 1: ("b", "verifier_failures")}
