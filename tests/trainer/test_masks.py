"""Masks: which tokens each kind keeps, by hand-written completions and by the properties of methods.md (T12)."""

from __future__ import annotations

import time
import typing

import numpy as np
import pytest
from token_table import END, HALF, REST, THINK_END, AsciiTable

from cluster.errors import StageError
from cluster.spec.masks import (
    EndOfSequenceMask,
    EntropyQuantileMask,
    EntropyThresholdMask,
    MaskSpec,
    PatternMask,
    PrefixMask,
    RandomMask,
    RegionMask,
    SkipFirstMask,
    SpecialTokensMask,
    TruncatedMask,
)
from trainer.masks import MASKS, CompletionView, MaskContext, check_pattern


def _view(content: str | list[int] = "abcdefgh", **fields) -> CompletionView:
    token_ids = [ord(character) for character in content] if isinstance(content, str) else content
    given = {"rollout_id": "0/1/2/3", "finish_reason": "stop", "table": AsciiTable(), **fields}
    return CompletionView(token_ids=np.array(token_ids, dtype=np.int32), **given)


def _kept(spec, view: CompletionView, *, step: int = 0, max_tokens: int = 64) -> list[int]:
    kept = MASKS[spec.kind](view, spec, MaskContext(step=step, max_tokens=max_tokens))
    assert kept.dtype == bool and kept.shape == (len(view),)
    return np.flatnonzero(kept).tolist()


def _text(spec, content: str) -> str:
    return "".join(content[index] for index in _kept(spec, _view(content)))


def test_every_kind_of_the_spec_has_a_mask():
    kinds = {member.model_fields["kind"].default for member in typing.get_args(typing.get_args(MaskSpec)[0])}
    assert kinds == set(MASKS)


# -- random (T12) ----------------------------------------------------------------------------------------------------


def test_random_with_ratio_zero_is_off():
    assert _kept(RandomMask(ratio=0.0), _view("x" * 500)) == list(range(500))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_random_keeps_about_one_minus_ratio(ratio):
    views = [_view("x" * 400, rollout_id=f"0/{index}/0/0") for index in range(50)]
    kept = np.mean([len(_kept(RandomMask(ratio=ratio), view)) / 400 for view in views])
    # 20,000 draws: five standard deviations
    assert kept == pytest.approx(1.0 - ratio, abs=5 * (ratio * (1 - ratio) / 20_000) ** 0.5)


def test_random_is_a_function_of_rollout_and_position_alone():
    spec = RandomMask(ratio=0.5)
    long, short = _kept(spec, _view("x" * 300)), _kept(spec, _view("y" * 100))
    assert [index for index in long if index < 100] == short
    assert long == _kept(spec, _view("x" * 300), step=9)
    assert long != _kept(spec, _view("x" * 300, rollout_id="0/1/2/4"))
    # a larger ratio masks more of the same tokens
    assert set(_kept(RandomMask(ratio=0.8), _view("x" * 300))) < set(long)


# -- positions -------------------------------------------------------------------------------------------------------


def test_skip_first():
    assert _kept(SkipFirstMask(tokens=3), _view("abcde")) == [3, 4]
    assert _kept(SkipFirstMask(tokens=5), _view("abcde")) == []


@pytest.mark.parametrize(("step", "expected"), [(0, 2), (1, 3), (2, 5), (3, 6), (100, 7)])
def test_prefix_grows_with_the_step_and_ends_at_the_limit(step, expected):
    assert len(_kept(PrefixMask(start_tokens=2, tokens_per_step=1.5), _view("x" * 20), step=step, max_tokens=7)) == expected


def test_truncated_completions_are_masked_whole():
    assert _kept(TruncatedMask(), _view("abc", finish_reason="length")) == []
    assert _kept(TruncatedMask(), _view("abc")) == [0, 1, 2]


# -- token ids -------------------------------------------------------------------------------------------------------


def test_special_tokens_at_every_or_the_first_occurrence_of_each_id():
    view = _view([*b"a<b>a<", END, *b"<a", END])
    assert _kept(SpecialTokensMask(), view) == [0, 1, 2, 3, 4, 5, 7, 8]
    # the ids of '<a' are masked one by one, wherever they stand
    assert _kept(SpecialTokensMask(texts=("<a",)), view) == [2, 3]
    assert _kept(SpecialTokensMask(texts=("<a",), occurrences="first"), view) == [2, 3, 4, 5, 7, 8, 9]


def test_end_of_sequence():
    assert _kept(EndOfSequenceMask(), _view([*b"ab", END])) == [0, 1]
    assert _kept(EndOfSequenceMask(), _view("ab", finish_reason="length")) == [0, 1]


# -- text ------------------------------------------------------------------------------------------------------------


def test_pattern_masks_the_tokens_that_its_matches_touch():
    assert _text(PatternMask(pattern=r"\\boxed\{.*?\}"), r"so \boxed{42} or \boxed{7}!") == "so  or !"
    assert _text(PatternMask(pattern=r"</?\w+>"), "<a>x</a>y < z") == "xy < z"
    assert _text(PatternMask(pattern="q"), "abc") == "abc"
    assert _text(PatternMask(pattern="x*"), "axxb") == "ab"  # empty matches touch nothing


def test_pattern_takes_every_token_of_a_character_and_whole_tokens():
    content = [ord("a"), HALF, REST, ord("b"), END]
    assert _kept(PatternMask(pattern="\u00e9"), _view(content)) == [0, 3, 4]
    assert _kept(PatternMask(pattern="a"), _view(content)) == [1, 2, 3, 4]
    assert _kept(PatternMask(pattern="b$"), _view(content)) == [0, 1, 2, 4]
    assert _kept(PatternMask(pattern="ink"), _view([ord("a"), THINK_END, ord("b")])) == [0, 2]


def test_a_hostile_pattern_ends_as_an_error():
    started = time.perf_counter()
    with pytest.raises(StageError) as caught:
        _kept(PatternMask(pattern="(a|aa)+$"), _view("a" * 80 + "b"))
    assert caught.value.reason == "pattern_timeout" and "(a|aa)+$" in caught.value.message
    assert time.perf_counter() - started < 10.0


@pytest.mark.parametrize("pattern", ["(", "[a", "a{1000}{1000}", "(?:x{1000000}){100000}"])
def test_a_pattern_that_cannot_be_compiled_is_refused(pattern):
    for attempt in (lambda: check_pattern(pattern), lambda: _kept(PatternMask(pattern=pattern), _view("abc"))):
        with pytest.raises(StageError) as caught:
            attempt()
        assert caught.value.reason == "pattern_invalid"
    check_pattern(r"\\boxed\{[^}]{0,80}\}")


@pytest.mark.parametrize(("keep", "expected"), [("thinking", "<think>so</think>"), ("answer", "\n4</think>2")])
def test_region_ends_with_the_first_closing_text(keep, expected):
    assert _text(RegionMask(keep=keep), "<think>so</think>\n4</think>2") == expected


def test_region_without_a_closing_text_is_all_answer():
    assert _text(RegionMask(keep="thinking"), "just 42") == ""
    assert _text(RegionMask(keep="answer"), "just 42") == "just 42"


def test_region_by_one_token_and_by_a_token_that_holds_more():
    assert _kept(RegionMask(keep="answer"), _view([*b"ab", THINK_END, *b"c"])) == [3]
    # '>x' would be one token: the token that holds the last character belongs to the thinking
    assert _kept(RegionMask(keep="thinking", end="b</th"), _view([*b"ab", THINK_END, *b"c"])) == [0, 1, 2]

    class OneId(AsciiTable):
        def text_token_ids(self, text):
            return [END]

    view = _view([*b"ab", END, *b"cd"], table=OneId())
    assert _kept(RegionMask(keep="thinking"), view) == [0, 1, 2]


# -- entropy ---------------------------------------------------------------------------------------------------------

ENTROPIES = np.array([0.1, 2.0, 0.8, 0.8, 1.5], dtype=np.float32)


@pytest.mark.parametrize(("keep", "expected"), [(0.2, [1]), (0.3, [1, 4]), (0.6, [1, 2, 4]), (1.0, [0, 1, 2, 3, 4]), (0.01, [1])])
def test_entropy_quantile_keeps_the_most_uncertain(keep, expected):
    assert _kept(EntropyQuantileMask(of="policy", keep=keep), _view("abcde", policy_entropies=ENTROPIES)) == expected


def test_entropy_quantile_keeps_the_exact_share():
    values = np.random.default_rng(0).random(100).astype(np.float32)
    kept = _kept(EntropyQuantileMask(of="teacher", keep=0.55), _view("x" * 100, teacher_entropies=values))
    assert len(kept) == 55 and min(values[kept]) > max(np.delete(values, kept))


def test_entropy_threshold_is_a_hard_gate():
    view = _view("abcde", policy_entropies=ENTROPIES, teacher_entropies=ENTROPIES[::-1])
    assert _kept(EntropyThresholdMask(of="policy", above_nats=0.9), view) == [1, 4]
    assert _kept(EntropyThresholdMask(above_nats=0.9), view) == [0, 3]
    assert _kept(EntropyThresholdMask(of="policy", above_nats=2.0), view) == []


@pytest.mark.parametrize("spec", [EntropyQuantileMask(of="teacher"), EntropyThresholdMask()])
def test_a_completion_without_teacher_has_no_uncertain_token(spec):
    assert _kept(spec, _view("abc", has_target=False)) == []
    with pytest.raises(ValueError, match="teacher's entropy"):
        _kept(spec, _view("abc"))


def test_what_a_mask_needs_is_named_when_it_is_missing():
    with pytest.raises(ValueError, match="policy's entropy"):
        _kept(EntropyQuantileMask(of="policy"), _view("abc"))
    with pytest.raises(ValueError, match="2 entropies of the policy for 3 tokens"):
        _kept(EntropyQuantileMask(of="policy"), _view("abc", policy_entropies=np.zeros(2)))
    for spec in (SpecialTokensMask(), EndOfSequenceMask(), PatternMask(pattern="a"), RegionMask(keep="answer")):
        with pytest.raises(ValueError, match="table"):
            _kept(spec, _view("abc", table=None))
