"""What a study's status is, from its members'."""

from __future__ import annotations

import pytest

from cluster.errors import IllegalTransition
from services.jobs.study_states import check_study_request, study_status


@pytest.mark.parametrize(
    "counts, status",
    [
        ({"queued": 3}, "queued"),
        ({"queued": 3, "succeeded": 1}, "running"),
        ({"queued": 3, "starting": 1}, "running"),
        ({"pausing": 1, "paused": 1}, "running"),
        ({"queued": 1, "paused": 2}, "queued"),
        ({"paused": 2, "succeeded": 1, "failed": 1}, "paused"),
        ({"succeeded": 2, "failed": 1}, "failed"),
        ({"succeeded": 2, "failed": 1, "cancelled": 1}, "cancelled"),
        ({"succeeded": 4, "queued": 0}, "succeeded"),
    ],
)
def test_the_status_follows_from_the_members(counts, status):
    assert study_status(counts) == status


@pytest.mark.parametrize("counts, action", [({"succeeded": 2}, "cancel"), ({"succeeded": 2}, "resume"), ({"failed": 1}, "pause"), ({"cancelling": 1, "failed": 1}, "resume")])
def test_a_request_that_concerns_nobody_is_refused(counts, action):
    with pytest.raises(IllegalTransition):
        check_study_request("x", study_status(counts), counts, action)


@pytest.mark.parametrize("counts", [{"queued": 2}, {"queued": 1, "succeeded": 1}, {"running": 1, "succeeded": 1}])
def test_a_resume_that_is_sent_again_is_no_error(counts):
    check_study_request("x", study_status(counts), counts, "resume")


def test_a_refusal_says_what_is_accepted():
    with pytest.raises(IllegalTransition, match="cannot pause; it accepts: resume") as caught:
        check_study_request("x", "failed", {"failed": 1, "succeeded": 2}, "pause")
    assert caught.value.details == {"status": "failed", "allowed": ["resume"]}


def test_a_study_whose_failed_members_have_their_results_says_what_it_is():
    with pytest.raises(IllegalTransition, match="study x is failed and cannot resume; nothing is left to run") as caught:
        check_study_request("x", "failed", {"succeeded": 2}, "resume")
    assert caught.value.details == {"status": "failed", "allowed": []}
