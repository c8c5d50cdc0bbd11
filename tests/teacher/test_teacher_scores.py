"""Scores against a plain Hugging Face forward in float64, one sequence at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_teacher import VOCABULARY, build_model, publish, requests
from transformers import AutoModelForCausalLM

from cluster.errors import TeacherError
from cluster.messages import TeacherRequest, token_digest
from cluster.spec.teachers import LiveTeacher
from services.teacher.scorer import TeacherScorer
from services.teacher.scoring import batches

TOLERANCE = 2e-5


@pytest.fixture(params=["tied", "untied"])
def model_folder(request, tmp_path):
    return build_model(tmp_path / "model", tied=request.param == "tied")


@pytest.fixture
def scorer(model_folder):
    return TeacherScorer(model_folder)


def _plain(model_folder, request: TeacherRequest, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """(log-softmax [T, V], hidden [T, H]) in float64."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64, attn_implementation="eager").eval()
    ids = torch.from_numpy(np.concatenate([request.prompt_token_ids, request.completion_token_ids]).astype(np.int64))[None]
    first = len(request.prompt_token_ids) - 1
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
    rows = slice(first, first + len(request.completion_token_ids))
    return torch.log_softmax(out.logits[0, rows] / temperature, -1).numpy(), out.hidden_states[-1][0, rows].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_equal_the_plain_forward(model_folder, scorer, temperature):
    asked = requests(9)
    for request, scores in zip(asked, scorer.score(asked, temperature=temperature), strict=True):
        expected, _ = _plain(model_folder, request, temperature)
        picked = expected[np.arange(len(expected)), request.completion_token_ids]
        np.testing.assert_allclose(scores.logprobs, picked, atol=TOLERANCE)
        assert scores.logprobs.dtype == np.float32
        assert (scores.support_ids, scores.support_logprobs, scores.hidden) == (None, None, None)


def test_given_support_is_scored_at_its_own_ids(model_folder, scorer):
    asked = requests(6, support_k=7)
    for request, scores in zip(asked, scorer.score(asked, temperature=0.7), strict=True):
        expected, _ = _plain(model_folder, request, 0.7)
        np.testing.assert_allclose(scores.support_logprobs, np.take_along_axis(expected, request.support_ids, 1), atol=TOLERANCE)
        assert scores.support_ids is None  # the caller has them


def test_own_top_k_is_the_plain_forwards(model_folder, scorer):
    asked = requests(6)
    for request, scores in zip(asked, scorer.score(asked, temperature=1.3, top_k=5), strict=True):
        expected, _ = _plain(model_folder, request, 1.3)
        np.testing.assert_array_equal(scores.support_ids, np.argsort(-expected, axis=1)[:, :5])
        np.testing.assert_allclose(scores.support_logprobs, -np.sort(-expected, axis=1)[:, :5], atol=TOLERANCE)
        assert scores.support_ids.dtype == np.int32 and scores.support_ids.shape == (len(expected), 5)


def test_hidden_times_head_gives_the_full_distribution(model_folder, scorer):
    asked = requests(6)
    head = scorer.head()
    assert head.shape == (VOCABULARY, 32) and head.dtype == np.float32
    for request, scores in zip(asked, scorer.score(asked, temperature=0.7, full="hidden"), strict=True):
        expected, hidden = _plain(model_folder, request, 0.7)
        np.testing.assert_allclose(scores.hidden, hidden, atol=TOLERANCE)
        logits = torch.from_numpy(scores.hidden @ head.T / 0.7)
        np.testing.assert_allclose(torch.log_softmax(logits, -1).numpy(), expected, atol=5e-5)


def test_batch_composition_does_not_matter(model_folder, scorer):
    asked = requests(12, support_k=4)
    together = scorer.score(asked, temperature=1.0)
    small = TeacherScorer(model_folder, batch_tokens=24)
    order = np.random.default_rng(3).permutation(12)
    shuffled = small.score([asked[i] for i in order], temperature=1.0)
    for position, index in enumerate(order):
        alone = scorer.score([asked[index]], temperature=1.0)[0]
        for other in (shuffled[position], alone):
            assert other.rollout_id == together[index].rollout_id == f"r{index}"
            np.testing.assert_allclose(other.logprobs, together[index].logprobs, atol=TOLERANCE)
            np.testing.assert_allclose(other.support_logprobs, together[index].support_logprobs, atol=TOLERANCE)


def test_every_batch_keeps_to_the_token_budget():
    asked = requests(20)
    found = list(batches(asked, 40))
    sizes = [sum(len(asked[i].prompt_token_ids) + len(asked[i].completion_token_ids) for i in batch) for batch in found]
    assert sorted(i for batch in found for i in batch) == list(range(20))
    assert max(sizes) <= 40 and len(found) > 5


def test_swapped_contexts_and_retokenised_completions_are_visible(scorer):
    first, second = requests(2)
    swapped = dataclasses.replace(first, problem_id=second.problem_id, prompt_token_ids=second.prompt_token_ids)
    retokenised = dataclasses.replace(first, completion_token_ids=np.append(first.completion_token_ids, 3).astype(np.int32))
    plain, of_swapped, of_retokenised = scorer.score([first, swapped, retokenised], temperature=1.0)
    assert plain.problem_id == first.problem_id and of_swapped.problem_id == second.problem_id
    assert plain.completion_digest == of_swapped.completion_digest == token_digest(first.completion_token_ids)
    assert of_retokenised.completion_digest != plain.completion_digest
    assert len(of_retokenised.logprobs) == len(plain.logprobs) + 1


def test_scores_follow_the_weights_and_carry_their_version(model_folder, scorer, tmp_path):
    snapshots = publish(tmp_path / "snapshots", model_folder, 2, step=0.1)
    scorer.begin_stage(LiveTeacher(), anchor="base", update=4)
    before = scorer.score(requests(3), temperature=1.0)
    scorer.follow(6, snapshots[-1])
    after = scorer.score(requests(3), temperature=1.0)
    assert {score.teacher_version for score in before} == {4} and {score.teacher_version for score in after} == {6}
    assert max(np.abs(a.logprobs - b.logprobs).max() for a, b in zip(before, after, strict=True)) > 0.05


def test_impossible_requests_are_refused(scorer):
    with pytest.raises(ValueError, match="60"):
        scorer.score(requests(1), temperature=1.0, top_k=61)
    with pytest.raises(ValueError, match="own support"):
        scorer.score(requests(1, support_k=2), temperature=1.0, top_k=3)
    with pytest.raises(ValueError, match="temperature"):
        scorer.score(requests(1), temperature=0.0)
    assert scorer.score([], temperature=1.0) == []


def test_weights_that_are_not_finite_never_reach_the_learner(scorer):
    scorer.weights()["model.norm.weight"].fill_(float("nan"))
    with pytest.raises(TeacherError) as caught:
        scorer.score(requests(1), temperature=1.0)
    assert caught.value.reason == "teacher_diverged"
