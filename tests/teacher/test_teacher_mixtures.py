"""Mixed teachers: exact geometric mixtures, over the whole vocabulary, in every form that a score can take (T8, T13)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_teacher import VOCABULARY, build_model, publish, requests, save_tokenizer
from transformers import AutoModelForCausalLM

from cluster.spec.teachers import (
    AnchorSource,
    ExternalTeacher,
    FrozenTeacher,
    LiveTeacher,
    MixTeacher,
    PolicySource,
    TrustRegionTeacher,
)
from services.teacher.scorer import TeacherScorer

TOLERANCE = 5e-5
OTHER = ExternalTeacher(path="other")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(policy, wider external model, snapshots)"""
    root = tmp_path_factory.mktemp("mixtures")
    policy = save_tokenizer(build_model(root / "policy", tied=True))
    other = save_tokenizer(build_model(root / "other", tied=False, seed=7, hidden=48))
    return policy, other, publish(root / "snapshots", policy, 3, step=0.05)


def _scorer(folders, spec, *, anchor="base", current=None) -> TeacherScorer:
    """Anchored at the base model (or snapshot 0), with the policy at snapshot 2."""
    policy, other, snapshots = folders
    scorer = TeacherScorer(policy, external_folders={"other": str(other)})
    scorer.begin_stage(spec, anchor=anchor, snapshot=snapshots[0], update=1)
    scorer.follow(3, current or snapshots[2])
    return scorer


@lru_cache
def _float64_model(folder, snapshot):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    if snapshot is not None:
        model.load_state_dict({name: tensor.double() for name, tensor in load_file(snapshot).items()})
    return model


def _float64_logits(folder, snapshot, request, temperature=1.0) -> np.ndarray:
    """[T, V] of a plain forward in float64, with a snapshot's weights where one is given."""
    model = _float64_model(folder, snapshot)
    ids = torch.from_numpy(np.concatenate([request.prompt_token_ids, request.completion_token_ids]).astype(np.int64))[None]
    first = len(request.prompt_token_ids) - 1
    with torch.no_grad():
        return model(ids).logits[0, first : first + len(request.completion_token_ids)].numpy() / temperature


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.log_softmax(torch.from_numpy(np.asarray(logits, np.float64)), -1).numpy()


MIXES = {
    "trust region": (TrustRegionTeacher(mix=0.3), 0.3, ("policy", None), ("policy", 2)),
    "anchor and external": (MixTeacher(first=AnchorSource(), second=OTHER, weight=0.6), 0.6, ("policy", None), ("other", None)),
    "extrapolation": (MixTeacher(first=AnchorSource(), second=OTHER, weight=1.25), 1.25, ("policy", None), ("other", None)),
    "policy and external": (MixTeacher(first=PolicySource(), second=OTHER, weight=0.5), 0.5, ("policy", 2), ("other", None)),
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", MIXES)
def test_every_form_is_the_float64_softmax_of_the_mixed_logits(folders, name, temperature):
    """softmax((1 - w) z_first + w z_second): sampled, given support, own top-K, entropies, log-probabilities, hidden x head."""
    spec, weight, first, second = MIXES[name]
    policy, other, snapshots = folders
    folder = {"policy": policy, "other": other}
    scorer = _scorer(folders, spec)
    asked, given = requests(5), requests(5, support_k=6)
    own = scorer.score(asked, temperature=temperature, top_k=4, entropies=True, full="logprobs")
    hidden = scorer.score(asked, temperature=temperature, full="hidden")
    on_given = scorer.score(given, temperature=temperature)
    head = scorer.head()
    assert head.shape == (VOCABULARY, 64 if name == "trust region" else 80)
    for request, with_support, scores, states, on_support in zip(asked, given, own, hidden, on_given, strict=True):
        z_first, z_second = (
            _float64_logits(folder[which], None if index is None else snapshots[index], request, temperature) for which, index in (first, second)
        )
        expected = _log_softmax((1.0 - weight) * z_first + weight * z_second)
        np.testing.assert_allclose(scores.full_logprobs, expected, atol=TOLERANCE)
        np.testing.assert_allclose(scores.logprobs, expected[np.arange(len(expected)), request.completion_token_ids], atol=TOLERANCE)
        np.testing.assert_allclose(scores.support_logprobs, -np.sort(-expected, axis=1)[:, :4], atol=TOLERANCE)
        np.testing.assert_allclose(scores.entropies, -(np.exp(expected) * expected).sum(1), atol=TOLERANCE)
        np.testing.assert_allclose(_log_softmax(states.hidden @ head.T / temperature), expected, atol=TOLERANCE)
        z_given = [
            _float64_logits(folder[which], None if index is None else snapshots[index], with_support, temperature) for which, index in (first, second)
        ]
        on_ids = np.take_along_axis(_log_softmax((1.0 - weight) * z_given[0] + weight * z_given[1]), with_support.support_ids, 1)
        np.testing.assert_allclose(on_support.support_logprobs, on_ids, atol=TOLERANCE)


def _full(scorer, asked) -> list[np.ndarray]:
    return [scores.full_logprobs for scores in scorer.score(asked, temperature=0.9, full="logprobs")]


def test_a_mixed_output_matrix_follows_the_policy(folders):
    """It is built once per update: scores and matrix after a follow are those of a scorer that was never asked before."""
    snapshots, asked = folders[2], requests(4)
    used, fresh = (_scorer(folders, TrustRegionTeacher(mix=0.5), current=snapshots[1]) for _ in range(2))
    before = _full(used, asked), used.head()
    for scorer in (used, fresh):
        scorer.follow(5, snapshots[0])
    np.testing.assert_array_equal(used.head(), fresh.head())
    assert np.abs(used.head() - before[1]).max() > 1e-3
    for one, other, earlier in zip(_full(used, asked), _full(fresh, asked), before[0], strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.abs(one - earlier).max() > 1e-2


def test_trust_region_of_0_is_frozen_and_of_1_is_live(folders):
    """T8. Not only close: the other set is not even held."""
    asked = requests(6)
    for mix, plain in ((0.0, FrozenTeacher()), (1.0, LiveTeacher())):
        for one, other in zip(_full(_scorer(folders, TrustRegionTeacher(mix=mix)), asked), _full(_scorer(folders, plain), asked), strict=True):
            np.testing.assert_array_equal(one, other)


def test_trust_region_is_the_normalised_geometric_mean(folders):
    """T8: of the probabilities that a frozen and a live teacher give on the same prompt."""
    asked = requests(6)
    anchors, policies, mixed = (_full(_scorer(folders, spec), asked) for spec in (FrozenTeacher(), LiveTeacher(), TrustRegionTeacher(mix=0.4)))
    for anchor, policy, found in zip(anchors, policies, mixed, strict=True):
        product = np.exp(anchor.astype(np.float64)) ** 0.6 * np.exp(policy.astype(np.float64)) ** 0.4
        np.testing.assert_allclose(np.exp(found), product / product.sum(1, keepdims=True), atol=2e-6)
        assert np.abs(np.exp(found) - 0.6 * np.exp(anchor) - 0.4 * np.exp(policy)).max() > 1e-2  # not the arithmetic one


@pytest.mark.parametrize("mix", [0.25, 0.9])
def test_trust_region_does_not_see_a_shift_of_logits_at_a_position(tmp_path, mix):
    """T8: the same vector added to every row of the policy's output matrix shifts all logits of a position alike."""
    model_folder = build_model(tmp_path / "model", tied=False)
    (snapshot,) = publish(tmp_path / "s", model_folder, 1, step=0.05)
    tensors = load_file(snapshot)
    shift = torch.randn(tensors["lm_head.weight"].shape[1], generator=torch.Generator().manual_seed(0))
    shifted = tmp_path / "shifted.safetensors"
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"] + shift}, shifted)
    found = []
    for path in (snapshot, shifted):
        scorer = TeacherScorer(model_folder)
        scorer.begin_stage(TrustRegionTeacher(mix=mix), anchor="base", snapshot=path, update=1)
        found.append(scorer.score(requests(5), temperature=1.0, full="logprobs"))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one.full_logprobs, other.full_logprobs, atol=2e-4)


def test_of_weight_1_the_reference_has_no_say(folders):
    """T13: whichever weights the first source has, log q is the second's alone."""
    asked = requests(5)
    expected = _full(_scorer(folders, OTHER), asked)
    for first, anchor in ((AnchorSource(), "base"), (AnchorSource(), "policy"), (PolicySource(), "base")):
        found = _full(_scorer(folders, MixTeacher(first=first, second=OTHER, weight=1.0), anchor=anchor), asked)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    elsewhere = _full(_scorer(folders, MixTeacher(first=AnchorSource(), second=OTHER, weight=1.25), anchor="base"), asked)
    assert max(np.abs(one - other).max() for one, other in zip(elsewhere, expected, strict=True)) > 0.1


@pytest.mark.parametrize("weight", [0.5, 1.25, 2.0])
def test_the_mixed_teacher_is_the_optimum_of_the_generalised_objective(folders, weight):
    """T13: argmax over p of weight E_p[log(q_second / q_first)] - KL(p || q_first), at every position."""
    asked = requests(4)
    firsts, seconds = _full(_scorer(folders, FrozenTeacher()), asked), _full(_scorer(folders, OTHER), asked)
    mixed = _full(_scorer(folders, MixTeacher(first=AnchorSource(), second=OTHER, weight=weight)), asked)
    generator = np.random.default_rng(0)
    for first, second, best in zip(firsts, seconds, mixed, strict=True):
        first, second, best = (array.astype(np.float64) for array in (first, second, best))

        def value(logprobs, first=first, second=second):
            return (np.exp(logprobs) * (weight * (second - first) - (logprobs - first))).sum(1)

        log_normaliser = np.log(np.exp((1.0 - weight) * first + weight * second).sum(1))
        np.testing.assert_allclose(value(best), log_normaliser, atol=1e-4)
        for _ in range(20):
            other = _log_softmax(best + 0.3 * generator.standard_normal(best.shape))
            assert (value(other) < value(best)).all()


def test_a_bfloat16_mixture_is_the_same_mixture_rounded(folders):
    """The forward pass in bfloat16: the exponents are applied before the matrix is rounded, the weights stay float32."""
    policy, other, snapshots = folders
    spec, asked = MixTeacher(first=AnchorSource(), second=OTHER, weight=1.25), requests(5)
    rounded = TeacherScorer(policy, dtype="bfloat16", external_folders={"other": str(other)})
    rounded.begin_stage(spec, anchor="base", snapshot=snapshots[0], update=1)
    exact = _full(_scorer(folders, spec), asked)
    head = rounded.head()
    assert head.dtype == np.float32
    for expected, by_logprobs, by_hidden in zip(
        exact, _full(rounded, asked), rounded.score(asked, temperature=0.9, full="hidden"), strict=True
    ):
        assert 1e-4 < np.abs(by_logprobs - expected).mean() < 0.3
        np.testing.assert_allclose(_log_softmax(by_hidden.hidden @ head.T / 0.9), by_logprobs, atol=1e-3)
