"""Named verifiers: what passes, what fails, and what is said about it."""

from __future__ import annotations

import pytest

from cluster.spec.domains import ExactMatch, JsonSchemaVerifier, MathEquivalence, MultipleChoice
from rollout.verifiers import ANSWER_CHECKS, SOLUTIONS, VERIFIERS

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def verify(spec, answer, completion):
    verdict = VERIFIERS[spec.kind](spec, answer, completion)
    assert verdict.score == float(verdict.passed) and verdict.error is None
    assert bool(verdict.feedback) != verdict.passed
    return verdict


@pytest.mark.parametrize(
    ("spec", "answer", "completion", "passed"),
    [
        (ExactMatch(), "95", " 95\n", True),
        (ExactMatch(), 95, "95", True),
        (ExactMatch(), "95", "95.", False),
        (ExactMatch(), "Paris", "paris", False),
        (ExactMatch(ignore_case=True), "Paris", "PARIS", True),
        (ExactMatch(strip=False), "95", "95 ", False),
        (ExactMatch(), "95", "", False),
    ],
)
def test_exact_match(spec, answer, completion, passed):
    assert verify(spec, answer, completion).passed == passed


@pytest.mark.parametrize(
    ("completion", "given"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("**C**", "C"),
        ("The answer is B.", "B"),
        ("Not A. Answer: **B**", "B"),
        ("so \\boxed{B} and not C", "B"),
        ("\\boxed{\\text{D}}", "D"),
        ("A is tempting, but it is C", "C"),
        ("answer: b. A dog", "B"),
        ("the answer is a lie: C", "C"),
        ("I'd say D", "D"),
        ("because", None),
        ("", None),
    ],
)
def test_multiple_choice_reads_the_letter_that_is_meant(completion, given):
    verdict = VERIFIERS["multiple_choice"](MultipleChoice(), "B", completion)
    assert verdict.details.get("given") == given
    assert verdict.passed == (given == "B")


def test_multiple_choice_answers_may_be_numbers_from_zero():
    assert verify(MultipleChoice(), 1, "B").passed
    assert SOLUTIONS["multiple_choice"](MultipleChoice(), 1) == "B"
    assert not verify(MultipleChoice(choices="xyz"), "x", "y").passed
    for answer in ("E", 4, "", "AB"):
        with pytest.raises(ValueError, match="none of the letters A, B, C, D"):
            ANSWER_CHECKS["multiple_choice"](MultipleChoice(), answer)


def test_json_schema_says_where_and_what():
    spec = JsonSchemaVerifier(json_schema=SCHEMA)
    assert verify(spec, None, '{"n": 3}').passed
    assert "at $.n" in verify(spec, None, '{"n": "three"}').feedback
    assert "'n' is a required property" in verify(spec, None, "{}").feedback
    assert verify(spec, None, '{"n": 3} trailing').feedback.startswith("not JSON")
    assert verify(JsonSchemaVerifier(json_schema={}), None, "NaN").feedback == "not JSON: NaN is not JSON"
    assert verify(spec, None, "[" * 100_000).feedback.startswith("not JSON")


def test_json_schema_may_come_from_the_row():
    assert verify(JsonSchemaVerifier(), '{"type": "integer"}', "3").passed
    assert not verify(JsonSchemaVerifier(), {"type": "integer"}, '"3"').passed
    with pytest.raises(ValueError, match="not a JSON Schema"):
        ANSWER_CHECKS["json_schema"](JsonSchemaVerifier(), {"type": "number of things"})


def test_references_in_a_schema_are_not_fetched(monkeypatch):
    import urllib.request

    fetched = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *given, **_: fetched.append(given))
    spec = JsonSchemaVerifier(json_schema={"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match=r"schema\.json"):
        VERIFIERS["json_schema"](spec, None, "3")
    assert fetched == []


@pytest.mark.parametrize(
    ("answer", "completion", "passed"),
    [
        ("1/2", "The answer is $\\frac{2}{4}$.", True),
        ("0.5", "so \\boxed{1/2}", True),
        ("2\\sqrt{3}", "$\\sqrt{12}$", True),
        ("2\\sqrt{3}", "2", False),
        ("1,234", "1234", True),
        ("1e-3", "0.001", True),
        ("x^2+1", "1+x^2", True),
        ("(1,2)", "$(1,2)$", True),
        (95, "37+58=95", True),
        ("95", "94", False),
        ("7", "no idea", False),
    ],
)
def test_math_equivalence(answer, completion, passed):
    assert verify(MathEquivalence(), answer, completion).passed == passed


def test_math_equivalence_works_in_a_thread():
    """The library's own timeouts would raise here: signals only reach the main thread."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(verify, MathEquivalence(), "1/2", "$0.5$").result().passed


def test_an_answer_that_is_no_mathematics_is_the_rows_fault():
    with pytest.raises(ValueError, match="not a mathematical expression"):
        VERIFIERS["math_equivalence"](MathEquivalence(), "", "3")


@pytest.mark.parametrize("spec", [ExactMatch(), MultipleChoice(), MathEquivalence()], ids=lambda spec: spec.kind)
def test_the_answer_itself_passes(spec):
    for answer in ("B", "C"):
        assert verify(spec, answer, SOLUTIONS[spec.kind](spec, answer)).passed
