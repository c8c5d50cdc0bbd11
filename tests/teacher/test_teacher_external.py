"""Teachers that are another model: its own architecture, its own padding, and ids that mean something else to it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_teacher import VOCABULARY, build_model, largest_difference, policy_tensors, publish, requests, save_tokenizer
from transformers import AutoModelForCausalLM

from cluster.errors import TeacherError
from cluster.spec.teachers import ExternalTeacher, MixTeacher, PerDomainTeacher
from services.teacher.rows import UNKNOWN_TOKEN_LOGPROB
from services.teacher.scorer import TeacherScorer

OTHER = ExternalTeacher(path="other")
WORDS = VOCABULARY - 4
"""Ids 56 and 57 are special, 58 and 59 rows of the head that no token has."""


def _scorer(tmp_path, *, spec=OTHER, begin=True, vocabulary=VOCABULARY, **tokenizer) -> TeacherScorer:
    policy = save_tokenizer(build_model(tmp_path / "policy", tied=True))
    other = save_tokenizer(build_model(tmp_path / "other", tied=False, seed=7, hidden=48, vocabulary=vocabulary), **tokenizer)
    scorer = TeacherScorer(policy, external_folders={"other": str(other)})
    if begin:
        scorer.begin_stage(spec, anchor="base", update=0)
    return scorer


def _plain(folder, request, ids=None) -> np.ndarray:
    """float64 logits [T, V] of the external model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    ids = np.concatenate([request.prompt_token_ids, request.completion_token_ids]) if ids is None else ids
    first = len(request.prompt_token_ids) - 1
    with torch.no_grad():
        logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits
    return logits[0, first : first + len(request.completion_token_ids)].numpy()


def _log_softmax(logits) -> np.ndarray:
    return torch.log_softmax(torch.from_numpy(logits), -1).numpy()


def test_an_external_teacher_scores_with_its_own_architecture_and_never_moves(tmp_path):
    scorer = _scorer(tmp_path)
    snapshots = publish(tmp_path / "s", tmp_path / "policy", 3, step=0.1)
    asked = requests(5)
    before = scorer.score(asked, temperature=1.0, full="logprobs")
    assert scorer.follow(3, snapshots[2]).masked_token_ids == {}  # it may skip
    after = scorer.score(asked, temperature=1.0, full="logprobs")
    assert scorer.head().shape == (VOCABULARY, 48) and {scores.teacher_version for scores in after} == {3}
    assert set(scorer.set_names) == {"external/other"}
    for request, one, other in zip(asked, before, after, strict=True):
        np.testing.assert_allclose(one.full_logprobs, _log_softmax(_plain(tmp_path / "other", request)), atol=3e-5)
        np.testing.assert_array_equal(one.full_logprobs, other.full_logprobs)
    assert largest_difference(scorer.weights("external/other"), {n: t.numpy() for n, t in policy_tensors(tmp_path / "other").items()}) == 0.0


def test_another_vocabulary_is_refused_with_its_reason(tmp_path):
    for spec in (OTHER, MixTeacher(second=OTHER, weight=0.5), PerDomainTeacher(teachers={"a": OTHER})):
        scorer = _scorer(tmp_path, begin=False, first="x")
        with pytest.raises(TeacherError, match="b'w0' to the policy, b'x0' to the teacher") as caught:
            scorer.begin_stage(spec, anchor="base", update=0)
        assert caught.value.reason == "teacher_vocabulary"


def test_a_folder_that_was_not_handed_in_is_named(tmp_path):
    scorer = _scorer(tmp_path, begin=False)
    with pytest.raises(ValueError, match="elsewhere@main"):
        scorer.begin_stage(ExternalTeacher(id="elsewhere", revision="main"), anchor="base", update=0)


@pytest.mark.parametrize("vocabulary", [VOCABULARY + 12, VOCABULARY])
def test_rows_of_padding_are_cut_to_the_policys(tmp_path, vocabulary):
    scorer, asked = _scorer(tmp_path, vocabulary=vocabulary), requests(5)
    for request, scores in zip(asked, scorer.score(asked, temperature=1.0, full="logprobs"), strict=True):
        assert scores.full_logprobs.shape[1] == VOCABULARY
        np.testing.assert_allclose(scores.full_logprobs, _log_softmax(_plain(tmp_path / "other", request)[:, :VOCABULARY]), atol=3e-5)


def test_ids_beyond_the_external_head_have_no_probability_and_are_masked(tmp_path):
    """Its head ends at id 57; the policy's rows 58 and 59 are padding that the teacher does not have."""
    scorer = _scorer(tmp_path, vocabulary=VOCABULARY - 2, begin=False)
    assert scorer.begin_stage(OTHER, anchor="base", update=0).masked_token_ids == {"": {58, 59}}
    request = requests(1)[0]
    completion = np.array([4, 59, 7], dtype=np.int32)
    request = dataclasses.replace(request, prompt_token_ids=request.prompt_token_ids % 50, completion_token_ids=completion)
    (scores,) = scorer.score([request], temperature=1.0, top_k=58, entropies=True)
    read = np.concatenate([request.prompt_token_ids, [4, 57, 7]])  # 59 cannot be read either; the last id stands for it
    expected = _log_softmax(_plain(tmp_path / "other", request, read))
    np.testing.assert_allclose(scores.logprobs[[0, 2]], expected[[0, 2], [4, 7]], atol=3e-5)
    assert scores.logprobs[1] == UNKNOWN_TOKEN_LOGPROB
    assert set(scores.support_ids[0]) == set(range(58)) and np.exp(scores.support_logprobs).sum(1) == pytest.approx([1.0] * 3, abs=1e-5)
    np.testing.assert_allclose(scores.entropies, -(np.exp(expected) * expected).sum(1), atol=3e-5)
    with pytest.raises(ValueError, match="58 ids"):
        scorer.score([request], temperature=1.0, top_k=59)


def test_special_ids_that_differ_are_masked_and_never_in_the_teachers_support(tmp_path):
    scorer = _scorer(tmp_path, specials=("<end>", "<human>"), begin=False)
    assert scorer.begin_stage(OTHER, anchor="base", update=0).masked_token_ids == {"": {57}}
    asked = requests(5)
    for request, scores in zip(asked, scorer.score(asked, temperature=1.0, top_k=VOCABULARY - 1), strict=True):
        expected = _log_softmax(_plain(tmp_path / "other", request))
        assert (scores.support_ids != 57).all() and np.isfinite(scores.support_logprobs).all()
        # normalised over all ids, the masked one included: the teacher's own probability of the rest is what it is
        np.testing.assert_allclose(scores.support_logprobs, np.take_along_axis(expected, scores.support_ids, 1), atol=3e-5)
        np.testing.assert_allclose(np.exp(scores.support_logprobs).sum(1), 1.0 - np.exp(expected[:, 57]), atol=3e-5)


def test_a_sampled_token_that_is_masked_still_has_a_finite_column(tmp_path):
    scorer = _scorer(tmp_path, specials=("<end>", "<human>"))
    request = dataclasses.replace(requests(1)[0], completion_token_ids=np.array([57, 3], dtype=np.int32))
    (scores,) = scorer.score([request], temperature=1.0, top_k=4, join_sampled=True)
    assert scores.support_ids[0, 4] == 57 and np.isfinite(scores.support_logprobs).all()


def test_what_cannot_be_answered_with_masked_ids_is_refused(tmp_path):
    scorer = _scorer(tmp_path, specials=("<end>", "<human>"))
    for full in ("hidden", "logprobs"):
        with pytest.raises(ValueError, match="special ids"):
            scorer.score(requests(1), temperature=1.0, full=full)
    request = dataclasses.replace(requests(1)[0], completion_token_ids=np.array([1, 2], dtype=np.int32))
    shared = dataclasses.replace(request, support_ids=np.array([[1, 2], [3, 4]], dtype=np.int32))
    assert scorer.score([shared], temperature=1.0)[0].support_logprobs.shape == (2, 2)
    foreign = dataclasses.replace(request, support_ids=np.array([[1, 2], [57, 4]], dtype=np.int32))
    with pytest.raises(ValueError, match="from the teacher"):
        scorer.score([foreign], temperature=1.0)
    sampled = dataclasses.replace(foreign, completion_token_ids=np.array([1, 57], dtype=np.int32))
    assert np.isfinite(scorer.score([sampled], temperature=1.0)[0].support_logprobs).all()  # a position of weight 0


def test_a_mixed_teacher_is_masked_where_a_part_is(tmp_path):
    scorer = _scorer(tmp_path, vocabulary=VOCABULARY - 2, specials=("<end>", "<human>"), begin=False)
    follow = scorer.begin_stage(MixTeacher(second=OTHER, weight=1.5), anchor="base", update=0)
    assert follow.masked_token_ids == {"": {57, 58, 59}}
    asked = [dataclasses.replace(request, completion_token_ids=request.completion_token_ids % 50) for request in requests(4)]
    for scores in scorer.score(asked, temperature=1.0, top_k=57):
        assert np.isfinite(scores.support_logprobs).all() and scores.support_ids.max() < 57


def test_masked_ids_are_of_the_domain_that_reads_another_model(tmp_path):
    """A domain with a teacher of the policy's own vocabulary keeps its full distribution."""
    from cluster.spec.teachers import FrozenTeacher

    scorer = _scorer(tmp_path, specials=("<end>", "<human>"), spec=PerDomainTeacher(teachers={"a": OTHER, "b": FrozenTeacher()}))
    assert scorer.begin_stage(
        PerDomainTeacher(teachers={"a": OTHER, "b": FrozenTeacher()}), anchor="base", update=0
    ).masked_token_ids == {"a": {57}}
    of = {domain: dataclasses.replace(requests(1)[0], problem_id=f"{domain}/train/0") for domain in "ab"}
    assert scorer.score([of["b"]], temperature=1.0, full="logprobs")[0].full_logprobs.shape[1] == VOCABULARY
    with pytest.raises(ValueError, match="special ids"):
        scorer.score([of["a"]], temperature=1.0, full="logprobs")
