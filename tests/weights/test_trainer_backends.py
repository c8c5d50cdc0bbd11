"""What is handed to vLLM's own trainers, and a send's deadline; the transfers themselves need GPUs."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from cluster.errors import WeightTransferError
from cluster.transfer.client import WorkerClient
from cluster.transfer.plugin import register, vllm_backend
from cluster.transfer.source import LearnerSource
from cluster.transfer.trainer import _init_info, send, torch_dtype


class TwoTensors:
    def named_full_parameters(self):
        yield "a.weight", torch.tensor([1.0 + 2**-12])
        yield "lm_head.weight", torch.ones(2, 3)

    def parameter_metadata(self):
        return [("a.weight", torch.float32, (1,)), ("lm_head.weight", torch.float32, (2, 3))]


def test_names_of_backends():
    assert [vllm_backend(name) for name in ("shared_memory", "nccl", "ipc")] == ["holdfast_snapshot", "nccl", "ipc"]
    with pytest.raises(ValueError, match="allowed are shared_memory, nccl, ipc"):
        vllm_backend("disk")


def test_both_halves_are_registered_once():
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

    from cluster.transfer.backend import SnapshotEngine, SnapshotTrainer

    register()
    register()
    assert WeightTransferEngineFactory._registry["holdfast_snapshot"]() is SnapshotEngine
    assert WeightTransferTrainerFactory._registry["holdfast_snapshot"]() is SnapshotTrainer


def test_nccl_counts_the_learner_and_every_engine_rank(monkeypatch, tmp_path):
    monkeypatch.setattr("cluster.transfer.trainer._rendezvous", lambda: ("10.0.0.7", 4321))
    client = WorkerClient([object()] * 3, ranks_per_worker=2)
    info = _init_info("nccl", client=client, rank=0, folder=tmp_path)
    assert (info.backend, info.world_size, info.master_address, info.master_port) == ("nccl", 7, "10.0.0.7", 4321)
    assert info.packed and info.is_sender
    ipc = _init_info("ipc", client=client, rank=1, folder=tmp_path)
    assert ipc.backend == "ipc" and not ipc.is_sender


def test_the_source_casts_metadata_and_tensors_alike_and_shows_the_masters():
    source = LearnerSource(TwoTensors(), torch_dtype("bfloat16"))
    masters = {}
    source.observe = masters.__setitem__
    sent = dict(source)
    assert [(item.name, item.dtype, item.shape) for item in source.metadata()] == [
        (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent.items()
    ]
    assert sent["a.weight"].dtype == torch.bfloat16 and sent["a.weight"].item() == 1.0
    assert masters["a.weight"].dtype == torch.float32 and masters["a.weight"].item() == 1.0 + 2**-12


def test_a_send_that_hangs_ends_at_its_deadline():
    started = time.monotonic()
    with pytest.raises(WeightTransferError, match="not sent within") as caught:
        send(SimpleNamespace(send_weights=lambda: time.sleep(5)), device="cuda", deadline_s=0.2)
    assert time.monotonic() - started < 2 and caught.value.reason == "publication_failed"


def test_a_send_that_raises_says_what_and_a_reason_of_ours_is_kept():
    def wrong() -> None:
        raise ValueError("metadata disagrees")

    def incomplete() -> None:
        raise WeightTransferError("a tensor is missing", reason="publication_incomplete")

    with pytest.raises(WeightTransferError, match="metadata disagrees"):
        send(SimpleNamespace(send_weights=wrong), device="cuda", deadline_s=5)
    with pytest.raises(WeightTransferError) as caught:
        send(SimpleNamespace(send_weights=incomplete), device="cuda", deadline_s=5)
    assert caught.value.reason == "publication_incomplete"
