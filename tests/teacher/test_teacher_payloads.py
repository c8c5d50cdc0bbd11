"""Supports joined with the sampled token, entropies, whole distributions and how they travel, routing by domain."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_teacher import VOCABULARY, build_model, publish, requests

from cluster.spec.teachers import EmaTeacher, FrozenTeacher, LiveTeacher, PerDomainTeacher, TrustRegionTeacher
from services.teacher.payload import cheaper_payload
from services.teacher.scorer import TeacherScorer


@pytest.fixture
def model_folder(tmp_path):
    return build_model(tmp_path / "model", tied=False)


def test_the_sampled_token_is_joined_as_the_last_column(model_folder):
    scorer = TeacherScorer(model_folder)
    asked = requests(8)
    plain, joined = scorer.score(asked, temperature=0.8, top_k=5), scorer.score(asked, temperature=0.8, top_k=5, join_sampled=True)
    among = 0
    for request, one, other in zip(asked, plain, joined, strict=True):
        assert other.support_ids.shape == (len(request.completion_token_ids), 6) and other.support_ids.dtype == np.int32
        np.testing.assert_array_equal(other.support_ids[:, :5], one.support_ids)
        np.testing.assert_array_equal(other.support_ids[:, 5], request.completion_token_ids)
        np.testing.assert_array_equal(other.support_logprobs[:, :5], one.support_logprobs)
        np.testing.assert_array_equal(other.support_logprobs[:, 5], other.logprobs)
        among += int((one.support_ids == request.completion_token_ids[:, None]).any(1).sum())
    assert among > 0  # also where it is among the first: the learner counts it once


def test_entropies_are_of_the_whole_distribution(model_folder):
    asked = requests(6)
    for scores in TeacherScorer(model_folder).score(asked, temperature=1.3, entropies=True, full="logprobs"):
        full = scores.full_logprobs.astype(np.float64)
        np.testing.assert_allclose(scores.entropies, -(np.exp(full) * full).sum(1), atol=1e-5)
        assert scores.entropies.dtype == np.float32 and scores.entropies.min() > 0.1


def test_log_probabilities_and_hidden_states_say_the_same(model_folder):
    scorer, asked = TeacherScorer(model_folder), requests(6)
    head = scorer.head().astype(np.float64)
    by_logprobs, by_hidden = (scorer.score(asked, temperature=0.7, full=way) for way in ("logprobs", "hidden"))
    for one, other in zip(by_logprobs, by_hidden, strict=True):
        assert one.hidden is None and other.full_logprobs is None
        assert one.full_logprobs.shape == (len(one.logprobs), VOCABULARY) and one.full_logprobs.dtype == np.float32
        logits = other.hidden.astype(np.float64) @ head.T / 0.7
        expected = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1, keepdims=True)
        np.testing.assert_allclose(one.full_logprobs, expected, atol=5e-5)
    with pytest.raises(ValueError, match="logprobs"):
        scorer.score(asked, temperature=1.0, full="logits")


@given(num_tokens=st.integers(1, 10**6), vocabulary=st.integers(2, 200_000), width=st.integers(1, 8192))
def test_the_cheaper_payload_sends_fewer_numbers(num_tokens, vocabulary, width):
    sent = {"logprobs": num_tokens * vocabulary, "hidden": num_tokens * width + vocabulary * width}
    assert sent[cheaper_payload(num_tokens, vocabulary=vocabulary, width=width)] == min(sent.values())
    assert cheaper_payload(num_tokens, vocabulary=vocabulary, width=width, one_head=False) == "logprobs"


def test_a_large_vocabulary_travels_as_hidden_states_and_a_small_one_does_not():
    assert cheaper_payload(65_536, vocabulary=151_936, width=1024) == "hidden"
    assert cheaper_payload(512, vocabulary=151_936, width=1024) == "logprobs"  # the output matrix alone would be more
    assert cheaper_payload(10**9, vocabulary=128, width=256) == "logprobs"


def test_a_mixed_teacher_is_counted_with_both_widths(model_folder):
    """V is 60: n x 60 against (n + 60) x 32 turns over at n = 69, against (n + 60) x 64 never."""
    scorer = TeacherScorer(model_folder)
    assert [scorer.full_payload(n) for n in (68, 69)] == ["logprobs", "hidden"]
    scorer.begin_stage(TrustRegionTeacher(mix=0.5), anchor="base", update=0)
    assert scorer.full_payload(10**9) == "logprobs"


# -- teachers by domain ----------------------------------------------------------------------------------------------

BY_DOMAIN = PerDomainTeacher(teachers={"math": FrozenTeacher(), "code": LiveTeacher(), "talk": EmaTeacher(update_rate=0.5)})


def test_requests_are_routed_by_their_problems_domain(model_folder, tmp_path):
    snapshots = publish(tmp_path / "s", model_folder, 2, step=0.05)
    together = TeacherScorer(model_folder)
    together.begin_stage(BY_DOMAIN, anchor="base", update=0)
    domains = [list(BY_DOMAIN.teachers)[index % 3] for index in range(9)]
    asked = [dataclasses.replace(request, problem_id=f"{domain}/train/0") for request, domain in zip(requests(9), domains, strict=True)]
    for update, path in enumerate(snapshots, start=1):
        together.follow(update, path)
    found = together.score(asked, temperature=1.0, top_k=3, full="logprobs")
    assert [scores.rollout_id for scores in found] == [request.rollout_id for request in asked]
    differences = {}
    for domain, spec in BY_DOMAIN.teachers.items():
        alone = TeacherScorer(model_folder)
        alone.begin_stage(spec, anchor="base", update=0)
        for update, path in enumerate(snapshots, start=1):
            alone.follow(update, path)
        expected = alone.score(asked, temperature=1.0, top_k=3)
        own = [index for index, of in enumerate(domains) if of == domain]
        for index in own:
            np.testing.assert_allclose(found[index].logprobs, expected[index].logprobs, atol=2e-5)
            np.testing.assert_array_equal(found[index].support_ids, expected[index].support_ids)
        differences[domain] = max(np.abs(found[i].logprobs - expected[i].logprobs).max() for i in range(9) if i not in own)
    assert min(differences.values()) > 0.05  # another domain's teacher would not have said the same


def test_teachers_by_domain_have_no_output_matrix_in_common(model_folder):
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(BY_DOMAIN, anchor="base", update=0)
    with pytest.raises(ValueError, match="code"):
        scorer.head()
    assert scorer.full_payload(10**6) == "logprobs"
    with pytest.raises(ValueError, match="p0"):
        scorer.score(requests(1), temperature=1.0)
    with pytest.raises(ValueError, match="logprobs"):
        scorer.score([dataclasses.replace(requests(1)[0], problem_id="math/train/0")], temperature=1.0, full="hidden")
