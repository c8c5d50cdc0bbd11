"""KL by prefix, MMD, cosines and distinct-n against closed forms; the class on tiny models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.tiny_models import write_tiny_model
from trainer.divergence.completion_statistics import completion_statistics, distinct_n
from trainer.divergence.domain_distance import domain_distances, median_bandwidth, mmd_squared
from trainer.divergence.embeddings import cosines, pooled_states, quartiles, within
from trainer.divergence.response_drift import ResponseDrift
from trainer.divergence.row_kl import row_kl
from trainer.modeling.policy_model import PolicyModel

P, Q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]


def _categorical(probabilities: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A row whose logits are the log-probabilities plus a constant."""
    return torch.ones(1, 1, dtype=torch.float64), torch.tensor(probabilities, dtype=torch.float64).log()[:, None] + 3.0


def test_two_categorical_models_by_hand():
    found = row_kl(_categorical(P), _categorical([0.125, 0.375, 0.5]), torch.tensor([2]))
    assert found.first_second.item() == pytest.approx(0.5 * math.log(4) + 0.25 * math.log(2 / 3) + 0.25 * math.log(0.5), abs=1e-14)
    assert found.second_first.item() == pytest.approx(0.125 * math.log(0.25) + 0.375 * math.log(1.5) + 0.5 * math.log(2), abs=1e-14)
    assert (found.first_logprobs.item(), found.second_logprobs.item()) == pytest.approx((math.log(0.25), math.log(0.5)))
    assert found.second_entropies.item() == pytest.approx(-sum(q * math.log(q) for q in (0.125, 0.375, 0.5)))


def test_a_temperature_is_of_both_models():
    cold = [value**2 / sum(v**2 for v in P) for value in P], [value**2 / sum(v**2 for v in Q) for value in Q]
    expected = sum(p * math.log(p / q) for p, q in zip(*cold, strict=True))
    assert row_kl(_categorical(P), _categorical(Q), torch.tensor([0]), temperature=0.5).first_second.item() == pytest.approx(expected)


def test_models_that_are_far_apart_give_a_finite_divergence_in_float32():
    logits = [torch.tensor([0.0, gap]) for gap in (0.0, 110.0)]
    rows = [(torch.ones(1, 1), value[:, None]) for value in logits]
    found = row_kl(*rows, torch.tensor([0]))
    # p = (1/2, 1/2), q = (e^-110, 1): KL(p||q) = 55 - ln 2, KL(q||p) = ln 2
    assert found.first_second.item() == pytest.approx(55.0 - math.log(2), rel=1e-6)
    assert found.second_first.item() == pytest.approx(math.log(2), rel=1e-6)


def test_vocabularies_must_be_one():
    with pytest.raises(ValueError, match="3 and 2"):
        row_kl(_categorical(P), _categorical([0.5, 0.5]), torch.tensor([0]))


def test_mmd_by_hand_and_of_gaussians():
    first, second = np.array([[0.0], [1.0]]), np.array([[3.0], [5.0]])
    k = lambda distance: math.exp(-(distance**2) / 8.0)  # noqa: E731
    expected = k(1) + k(2) - 2.0 * (k(3) + k(5) + k(2) + k(4)) / 4.0
    assert mmd_squared(first, second, bandwidth=2.0) == pytest.approx(expected, abs=1e-14)
    rng = np.random.default_rng(0)
    x, y, again = rng.normal(0, 1, (1500, 1)), rng.normal(1, 1, (1500, 1)), rng.normal(0, 1, (1500, 1))
    # E k of N(m, 2) differences with bandwidth b: b / sqrt(b^2 + 2) exp(-m^2 / (2 (b^2 + 2)))
    closed = 2.0 / math.sqrt(3.0) * (1.0 - math.exp(-1.0 / 6.0))
    assert mmd_squared(x, y, bandwidth=1.0) == pytest.approx(closed, abs=0.03)
    assert abs(mmd_squared(x, again, bandwidth=1.0)) < 0.003
    assert mmd_squared(x + 1e6, y + 1e6, bandwidth=1.0) == pytest.approx(mmd_squared(x, y, bandwidth=1.0), abs=1e-6)


def test_the_bandwidth_is_the_median_distance_and_one_for_all_pairs():
    sets = {"a": np.array([[0.0], [1.0]]), "b": np.array([[3.0]] * 2), "c": np.array([[9.0], [8.0]])}
    assert median_bandwidth([sets["a"], np.array([[4.0]])]) == pytest.approx(3.0, rel=1e-14)  # distances 1, 3, 4
    found = domain_distances(sets)
    assert found["bandwidth"] == median_bandwidth(list(sets.values()))
    assert found["mmd_squared"]["a"]["c"] == found["mmd_squared"]["c"]["a"] == mmd_squared(sets["a"], sets["c"], bandwidth=found["bandwidth"])
    with pytest.raises(ValueError, match="2 or more"):
        mmd_squared(np.zeros((1, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="bandwidth is 0"):
        mmd_squared(np.zeros((2, 1)), np.zeros((2, 1)))


def test_equal_points_are_at_no_distance_whatever_rounding_leaves_of_them():
    point, others = np.random.default_rng(0).normal(size=(1, 128)), np.random.default_rng(1).normal(size=(3, 128))
    assert median_bandwidth([np.repeat(point, 40, axis=0), others]) == 0.0
    near = median_bandwidth([np.array([[1.0, 3.0], [1.0 + 1e-3, 3.0]])])
    assert near == pytest.approx(1e-3, rel=1e-6), "near is not equal"


def test_a_domain_without_a_distance_is_named_with_the_reason_and_costs_the_others_nothing():
    rng = np.random.default_rng(0)
    a, b, one, broken = rng.normal(size=(8, 16)), rng.normal(size=(8, 16)) + 1.0, rng.normal(size=(1, 16)), rng.normal(size=(4, 16))
    broken[2, 3] = math.nan
    alone = domain_distances({"a": a, "b": b})
    assert alone["notes"] == [] and alone["mmd_squared"]["a"]["b"] == mmd_squared(a, b, bandwidth=alone["bandwidth"])
    found = domain_distances({"one": one, "a": a, "broken": broken, "same": np.repeat(one, 60, axis=0), "b": b})
    assert found["bandwidth"] == alone["bandwidth"]
    assert found["mmd_squared"] == {"one": {}, "a": {"b": alone["mmd_squared"]["a"]["b"]}, "broken": {}, "same": {}, "b": {"a": alone["mmd_squared"]["a"]["b"]}}
    reasons = [("one", "too_few_prompts"), ("broken", "not_finite"), ("same", "prompts_alike")]
    assert len(found["notes"]) == len(reasons)
    assert all(repr(name) in note and reason in note for note, (name, reason) in zip(found["notes"], reasons, strict=True))


def test_domains_of_one_prompt_that_they_share_have_no_distances():
    found = domain_distances({"a": np.ones((3, 4)), "b": np.ones((3, 4))})
    assert found["mmd_squared"] == {"a": {}, "b": {}} and found["bandwidth"] is None
    assert len(found["notes"]) == 1 and "prompts_alike" in found["notes"][0]


def test_distinct_n_and_lengths_by_hand():
    completions = [np.array([1, 2, 1, 2]), np.array([1, 2])]
    assert distinct_n(completions, 1) == 2 / 6
    assert distinct_n(completions, 2) == 2 / 4  # 12, 21, 12; 12: none spans the two
    assert distinct_n(completions, 3) == 1.0 and distinct_n(completions, 5) is None
    assert completion_statistics(completions)["mean_tokens"] == 3.0


def test_cosines_quartiles_and_parts():
    assert cosines(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 2.0], [3.0, 3.0]])).tolist() == pytest.approx([0.0, 1.0])
    assert quartiles(np.arange(5.0)) == (1.0, 2.0, 3.0)
    assert list(within([3, 3, 9, 1], 6)) == [slice(0, 2), slice(2, 3), slice(3, 4)]
    empty, text = np.zeros((1, 2)), np.ones((1, 2))
    assert (cosines(empty, text), cosines(empty, empty)) == (0.0, 1.0)  # an answer of no text


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [write_tiny_model(root / str(seed), tied=True, seed=seed) for seed in (0, 1)]


PROMPTS = [np.array([5, 6, 7]), np.array([9]), np.array([11, 12])]
COMPLETIONS = [np.array([20, 21, 1]), np.array([30, 31, 32, 33, 1]), np.array([1])]


def test_an_identical_model_has_not_moved(folders):
    found = ResponseDrift(folders[0]).measure(PROMPTS, COMPLETIONS, folders[0])
    assert found["kl_base_policy"] == found["kl_policy_base"] == found["sampled_log_ratio"] == 0.0
    assert (found["unbiased"], found["num_tokens"], found["mean_tokens"]) == ("kl_policy_base", 9.0, 3.0)


def test_the_kl_of_two_models_is_that_of_their_own_distributions(folders):
    base, policy = (PolicyModel.load(folder, dtype=torch.float64) for folder in folders)
    drift = ResponseDrift(folders[0], dtype=torch.float64, budget_tokens=5)
    found = drift.measure(PROMPTS, COMPLETIONS, policy, sampled_by="base")
    forward, reverse, ratios = [], [], []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        whole = torch.from_numpy(np.concatenate([prompt, completion]))
        for end in range(len(prompt), len(whole)):
            log_p, log_q = (_next(model, whole[:end]) for model in (base, policy))
            forward.append((log_p.exp() * (log_p - log_q)).sum().item())
            reverse.append((log_q.exp() * (log_q - log_p)).sum().item())
            ratios.append((log_p - log_q)[whole[end]].item())
    assert found["kl_base_policy"] == pytest.approx(np.mean(forward), rel=1e-9)
    assert found["kl_policy_base"] == pytest.approx(np.mean(reverse), rel=1e-9)
    assert found["sampled_log_ratio"] == pytest.approx(np.mean(ratios), rel=1e-9)
    assert found["unbiased"] == "kl_base_policy"
    against = drift.measure(PROMPTS, COMPLETIONS, base, against=policy)
    assert against["kl_base_policy"] == pytest.approx(np.mean(reverse), rel=1e-9)


def _next(model: PolicyModel, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token, one prefix at a time."""
    from trainer.modeling.packed import pack_sequences

    hidden = model.hidden_states(pack_sequences([(ids.numpy(), np.array([0]))]))
    with torch.no_grad():
        return (hidden @ model.head_weight.T)[0].log_softmax(-1)


def test_a_snapshot_is_its_model(folders, tmp_path):
    from cluster.transfer.snapshot import write_snapshot

    path = write_snapshot(tmp_path, 3, PolicyModel.load(folders[1]).model.named_parameters())
    drift = ResponseDrift(folders[0])
    assert drift.measure(PROMPTS, COMPLETIONS, path) == drift.measure(PROMPTS, COMPLETIONS, folders[1])


def test_embeddings_are_means_over_a_texts_own_tokens(folders):
    model = PolicyModel.load(folders[0], dtype=torch.float64)
    apart = np.concatenate([pooled_states(model, [ids]) for ids in COMPLETIONS])
    np.testing.assert_allclose(pooled_states(model, COMPLETIONS, budget_tokens=6), apart, rtol=1e-10)
    with torch.no_grad():
        from trainer.modeling.packed import pack_sequences

        states = [model.hidden_states(pack_sequences([(COMPLETIONS[0][:end], np.array([0]))]))[0].numpy() for end in (1, 2, 3)]
    np.testing.assert_allclose(apart[0], np.mean(states, axis=0), rtol=1e-10)
    same = ResponseDrift(folders[0]).similarity(COMPLETIONS, COMPLETIONS)
    assert same["q25"] == pytest.approx(1.0) and same["num_pairs"] == 3.0


def test_equal_texts_have_one_embedding_wherever_they_stand(folders):
    texts = [np.array([7, 8, 9]), np.array([20, 21, 22, 23, 24]), np.array([7, 8, 9]), np.array([30]), np.array([7, 8, 9])]
    found = ResponseDrift(folders[0], budget_tokens=6).embed(texts)
    assert found.shape[0] == 5 and (found[0] == found[2]).all() and (found[0] == found[4]).all()
    np.testing.assert_allclose(found[1], ResponseDrift(folders[0]).embed(texts[1:2])[0], rtol=1e-4, atol=1e-5)


def test_what_is_no_pair_is_refused(folders):
    drift = ResponseDrift(folders[0])
    with pytest.raises(ValueError, match="3 prompts and 1 completions"):
        drift.measure(PROMPTS, COMPLETIONS[:1], folders[0])
    with pytest.raises(ValueError, match="'both'"):
        drift.measure(PROMPTS, COMPLETIONS, folders[0], sampled_by="both")
