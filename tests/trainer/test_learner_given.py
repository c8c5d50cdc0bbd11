"""A learner that takes another trainer's checkpoint: exactly its weights on one and two ranks, nothing kept, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors import SafetensorError
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

from cluster.errors import StageError
from cluster.messages import BatchShard
from trainer.diagnostics.weight_files import WeightFiles

MODELS = ("tied", "untied")


def _shard() -> BatchShard:
    samples = make_samples(4, seed=3)
    return BatchShard(micro_batches=(tuple(samples),), term_counts=term_counts(samples), teacher_head=teacher_head())


def _sharded(folder: Path, dtype: torch.dtype) -> Path:
    """The folder's weights in ``dtype`` and in two files with an index, as larger models come."""
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return folder


def _take(rank: int, world_size: int, root: Path) -> None:
    """One update of the base, then the other trainer's weights; the lead writes what the learner then holds."""
    learner = make_learner(root / "base", rank=rank, world_size=world_size)
    learner.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True)
    shard = _shard()
    learner.step(shard if rank == 0 else BatchShard(micro_batches=((),), term_counts={}))
    learner.sequence_logprobs([shard.micro_batches[0][0].prompt_token_ids], [shard.micro_batches[0][0].completion_token_ids], temperature=1.0)
    learner.take_policy(root / "given")
    held = {name: tensor.clone() for name, tensor in learner.named_full_parameters()}
    scores = learner.sequence_logprobs([shard.micro_batches[0][0].prompt_token_ids], [shard.micro_batches[0][0].completion_token_ids], temperature=1.0)
    learner.save_state(root / f"state{world_size}")
    if rank == 0:
        save_file(held, root / f"held{world_size}.safetensors")
        save_file({"scores": torch.tensor(scores[0])}, root / f"scores{world_size}.safetensors")
    dist.barrier()
    learner.close()


def _two_ranks(rank: int, root: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    for name in MODELS:
        _take(rank, 2, Path(root) / name)
        _refused_together(rank, Path(root) / name)
        _unreadable_on_one(rank, Path(root) / name)
    dist.destroy_process_group()


def _refused_together(rank: int, root: Path) -> None:
    """Only rank 1 is shown a folder that does not fit; both must raise, or rank 0 would wait in a collective for ever."""
    learner = make_learner(root / "base", rank=rank, world_size=2)
    try:
        learner.take_policy(root / ("given" if rank == 0 else "nowhere"))
    except StageError as error:
        (root / f"refusal{rank}.json").write_text(json.dumps({"reason": error.reason, "message": error.message}))
    learner.close()


def _unreadable_on_one(rank: int, root: Path) -> None:
    """Rank 1's disk fails in the middle of the folder."""
    learner, read = make_learner(root / "base", rank=rank, world_size=2), WeightFiles.read

    def failing(self, name):
        raise OSError(5, "Input/output error")

    try:
        WeightFiles.read = failing if rank == 1 else read
        learner.take_policy(root / "given")
    except StageError as error:
        (root / f"unreadable{rank}.json").write_text(json.dumps({"reason": error.reason, "message": error.message}))
    finally:
        WeightFiles.read = read
    learner.close()


@pytest.fixture(scope="module")
def taken(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("given")
    for name in MODELS:
        save_tiny_model(root / name / "base", tied=name == "tied", seed=0)
        _sharded(save_tiny_model(root / name / "given", tied=name == "tied", seed=1), torch.bfloat16)
        _take(0, 1, root / name)
    multiprocessing.spawn(_two_ranks, args=(str(root),), nprocs=2, join=True)
    return root


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_learner_holds_exactly_the_given_weights(taken, name, world_size):
    held = load_file(taken / name / f"held{world_size}.safetensors")
    given = {key: value for file in (taken / name / "given").glob("*.safetensors") for key, value in load_file(file).items()}
    base = load_file(taken / name / "base" / "model.safetensors")
    assert set(given) <= set(held) and set(held) - set(given) <= {"lm_head.weight"}
    for key, value in given.items():
        assert held[key].dtype == torch.float32 and torch.equal(held[key], value.float()), key
    assert not torch.equal(held["model.layers.0.mlp.up_proj.weight"], base["model.layers.0.mlp.up_proj.weight"])
    if name == "tied":
        assert torch.equal(held["lm_head.weight"], held["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", MODELS)
def test_it_scores_with_them_and_forgets_the_optimizer(taken, name):
    from transformers import AutoModelForCausalLM

    sample = _shard().micro_batches[0][0]
    ids = torch.tensor([[*sample.prompt_token_ids, *sample.completion_token_ids]], dtype=torch.long)
    model = AutoModelForCausalLM.from_pretrained(taken / name / "given", dtype=torch.float32)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0].double(), -1)
    start = len(sample.prompt_token_ids)
    expected = logprobs[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].float()
    for world_size in (1, 2):
        found = load_file(taken / name / f"scores{world_size}.safetensors")["scores"]
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        record = json.loads((taken / name / f"state{world_size}" / "state.json").read_text())
        moments = load_file(taken / name / f"state{world_size}" / "optimizer.safetensors")
        assert record["optimizer_steps"] == 0 and all(float(value.abs().max()) == 0.0 for value in moments.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_that_one_rank_cannot_read_is_refused_on_both(taken, name):
    first, second = (json.loads((taken / name / f"refusal{rank}.json").read_text()) for rank in (0, 1))
    assert first["reason"] == second["reason"] == "policy_unusable"
    assert "rank 1" in first["message"] and "nowhere" in second["message"]


@pytest.mark.parametrize("name", MODELS)
def test_a_disk_that_fails_on_one_rank_ends_both(taken, name):
    first, second = (json.loads((taken / name / f"unreadable{rank}.json").read_text()) for rank in (0, 1))
    assert first["reason"] == second["reason"] == "policy_unusable"
    assert "rank 1" in first["message"] and "Input/output error" in second["message"]


def _changed(root: Path, change) -> Path:
    folder = save_tiny_model(root / "changed", tied=True, seed=1)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    return folder


CHANGES = [
    (lambda weights: weights.pop("model.norm.weight"), "lacks 1 tensors; the first is model.norm.weight"),
    (lambda weights: weights.update(extra=torch.zeros(1)), "the model has not, 1 tensors; the first is extra"),
    (lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight is \[3\], the model's is \[32\]"),
    (lambda weights: weights.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}), "model.norm.weight of .* is I8"),
    (lambda weights: weights["model.norm.weight"].fill_(float("nan")), "model.norm.weight has values that are not finite"),
    (lambda weights: weights.update({"lm_head.weight": torch.ones(50, 32)}), "lm_head.weight differs from model.embed_tokens.weight"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_what_does_not_fit_is_refused_before_any_weight_has_changed(tmp_path, change, words):
    learner = make_learner(save_tiny_model(tmp_path / "base", tied=True, seed=0))
    before = {name: tensor.clone() for name, tensor in learner.named_full_parameters()}
    with pytest.raises(StageError, match=words) as raised:
        learner.take_policy(_changed(tmp_path, change))
    assert raised.value.reason == "policy_unusable"
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.named_full_parameters())
    learner.close()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), SafetensorError("header too large")])
def test_a_file_that_fails_while_it_is_read_is_a_refusal_too(tmp_path, monkeypatch, error):
    """A rank that raised anything else would not vote, and the others would wait for it."""
    learner = make_learner(save_tiny_model(tmp_path / "base", tied=True, seed=0))
    before = {name: tensor.clone() for name, tensor in learner.named_full_parameters()}

    def read(self, name):
        raise error

    monkeypatch.setattr(WeightFiles, "read", read)
    with pytest.raises(StageError, match=r"given cannot be read: .*(Input/output error|header too large)") as raised:
        learner.take_policy(save_tiny_model(tmp_path / "given", tied=True, seed=1))
    assert raised.value.reason == "policy_unusable"
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.named_full_parameters())
    learner.close()


def test_a_stage_must_begin_before_the_next_step(tmp_path):
    learner = make_learner(save_tiny_model(tmp_path / "base", tied=True))
    learner.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True)
    learner.take_policy(tmp_path / "base")
    with pytest.raises(ValueError, match="begin_stage"):
        learner.step(_shard())
    learner.close()
