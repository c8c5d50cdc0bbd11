"""The detectors that read metrics: each compares a trailing window with the stage's own start (or its own best).

A detector returns None where it cannot say anything (the method records no such metric, too few steps), else a Reading whose
level is 1 at its threshold. Every comparison that noise could pass is divided by its standard error too. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from services.evaluation.collapse.records import Reading
from services.evaluation.collapse.tracks import Track

SCORE, LENGTH, CAP = "rollout/score_mean", "rollout/length_p95", "rollout/truncated_share"
ENTROPY, KL, POSITIVE = "policy/entropy_nats", "teacher/kl_nats", "teacher/positive_share"
PREFIX = "rollout/prefix_tokens"
CONTEXT, GRADIENT, LOSS = "teacher/context_share", "gradient/norm", "loss/total"
GAPS = tuple(f"teacher/gap_nats/at_{start}" for start in (0, 16, 64, 256, 1024, 4096))
DISTINCT, REPEATED = "collapse/distinct_2", "collapse/repeated_4gram_share"
HEDGING, CORRECTION = "collapse/hedging_per_1000_tokens", "collapse/self_correction_per_1000_tokens"

SIGMAS = 3.0
"""Standard errors that a difference must have."""
SCORE_FALL = 0.05
"""Below the stage's best window, in score."""
BEST_OF = 100
"""Steps up to which the best window's luck is left out of account, so that a fall early in a stage is told at once."""
SOLVED = 0.95
NOTHING = 0.01
"""Score at which hardly a completion is right."""
TINY = 1e-12


def sigmas_from_best(count: int) -> float:
    """Standard errors between the best window of ``count`` steps and the window now: the best of many is far from any one by chance
    alone. On a level score with normal noise 8 of 100 stages of 100 steps pass it, and 16 of 100 of 1000 steps (97 without the
    logarithm): 300 drawings; tests/collapse/test_level_scores.py holds bounds."""
    return SIGMAS + math.sqrt(2.0 * math.log(max(1.0, count / BEST_OF)))


class View:
    """The metrics' tracks as the detectors read them at one step."""

    def __init__(self, tracks: Mapping[str, Track], step: int):
        self._tracks, self._step = tracks, step

    def get(self, name: str) -> Track | None:
        track = self._tracks.get(name)
        return track if track is not None and track.is_ready(self._step) else None

    def score_fall(self) -> float | None:
        """How far the score is below its best, in units of what counts as a fall; None without a score."""
        score = self.get(SCORE)
        if score is None:
            return None
        return (score.highest - score.now) / max(SCORE_FALL, sigmas_from_best(score.count) * score.error)

    def nothing(self) -> float | None:
        """1 where hardly a completion is right; None where that says nothing, since prefixes alone are written."""
        score = self.get(SCORE)
        return None if score is None or self.get(PREFIX) is not None else NOTHING / max(score.now, TINY)

    def score_ill(self) -> float | None:
        """``score_fall``, or how near the score is to nothing: a policy that is dead when its stage's window begins has nowhere to fall."""
        fall = self.score_fall()
        return None if fall is None else max(fall, self.nothing() or 0.0)


def _evidence(**tracks: Track) -> dict[str, float]:
    named = {}
    for name, track in tracks.items():
        named |= {f"{name}_start": track.start, f"{name}_now": track.now}
    return named


def score_falls(view: View) -> Reading | None:
    fall = view.score_fall()
    if fall is None:
        return None
    score = view.get(SCORE)
    return Reading(
        level=fall,
        message=f"the score fell from {score.highest:.3f}, its best in this stage, to {score.now:.3f}",
        evidence={**_evidence(score=score), "score_best": score.highest, "score_error": score.error},
    )


def nothing_right(view: View) -> Reading | None:
    """Nothing tells right from wrong: groups have equal scores, and no sibling's solution can be shown to a teacher."""
    score, level = view.get(SCORE), view.nothing()
    if level is None:
        return None
    return Reading(
        level=level,
        message=f"hardly a completion of the last steps is right: score {score.now:.3f}, {score.start:.3f} at the stage's start",
        evidence=_evidence(score=score),
    )


def teacher_follows_policy(view: View) -> Reading | None:
    """The loss looks perfect: the teacher agrees with the policy although the policy gets worse."""
    kl, score, fall = view.get(KL), view.get(SCORE), view.score_ill()
    if kl is None or fall is None:
        return None
    near = 0.2 * kl.highest / max(kl.now, TINY)
    return Reading(
        level=min(near, fall),
        message=f"the teacher no longer differs from the policy ({kl.now:.3g} nats a token, {kl.highest:.3g} at the most) "
        f"while the score is {score.now:.3f} ({score.highest:.3f} at best)",
        evidence={**_evidence(kl_nats=kl, score=score), "kl_nats_most": kl.highest, "score_best": score.highest},
    )


def teacher_turns_away(view: View) -> Reading | None:
    """The other way to fall: policy and teacher part again after they had come together, and the score goes with it."""
    kl, score, fall = view.get(KL), view.get(SCORE), view.score_fall()
    if kl is None or fall is None:
        return None
    apart = (kl.now - kl.lowest) / max(0.5 * kl.lowest, SIGMAS * kl.error, TINY)
    return Reading(
        level=min(apart, fall),
        message=f"policy and teacher part: {kl.now:.3g} nats a token, {kl.lowest:.3g} at the least, "
        f"while the score fell from {score.highest:.3f} to {score.now:.3f}",
        evidence={**_evidence(kl_nats=kl, score=score), "kl_nats_least": kl.lowest, "score_best": score.highest},
    )


def entropy_falls(view: View) -> Reading | None:
    """Entropy gone without anything gained for it; a policy that learns becomes surer too, and is not meant."""
    entropy, score = view.get(ENTROPY), view.get(SCORE)
    if entropy is None:
        return None
    level = 0.25 * entropy.start / max(entropy.now, TINY)
    if score is not None and (score.now >= SOLVED or score.now - score.start > max(SCORE_FALL, SIGMAS * score.error)):
        level = min(level, 0.0)
    return Reading(
        level=level,
        message=f"the policy's entropy fell from {entropy.start:.3g} to {entropy.now:.3g} nats a token, the score did not rise",
        evidence=_evidence(entropy_nats=entropy) | ({} if score is None else _evidence(score=score)),
    )


def entropy_rises(view: View) -> Reading | None:
    """The policy gets unsure of what it had learned to do."""
    entropy, score, fall = view.get(ENTROPY), view.get(SCORE), view.score_ill()
    if entropy is None or fall is None:
        return None
    rise = (entropy.now - entropy.lowest) / max(entropy.lowest, SIGMAS * entropy.error, TINY)
    return Reading(
        level=min(rise, fall),
        message=f"the policy's entropy rose from {entropy.lowest:.3g}, its least in this stage, to {entropy.now:.3g} nats a token, "
        f"while the score is {score.now:.3f} ({score.highest:.3f} at best)",
        evidence={**_evidence(entropy_nats=entropy, score=score), "entropy_nats_least": entropy.lowest, "score_best": score.highest},
    )


def answers_shrink(view: View) -> Reading | None:
    """Answers cut short; a policy that learns may write less too, and is not meant."""
    length, score, fall = view.get(LENGTH), view.get(SCORE), view.score_ill()
    if length is None or fall is None:
        return None
    shrink = (length.start - length.now) / max(0.5 * length.start, SIGMAS * length.error, TINY)
    return Reading(
        level=min(shrink, fall),
        message=f"the longest completions shrink: 95th percentile {length.now:.0f} tokens, {length.start:.0f} at the stage's start, "
        f"while the score is {score.now:.3f} ({score.highest:.3f} at best)",
        evidence={**_evidence(length_p95=length, score=score), "score_best": score.highest},
    )


def length_tail(view: View) -> Reading | None:
    length = view.get(LENGTH)
    if length is None:
        return None
    rise = length.now - length.start
    return Reading(
        level=rise / max(0.5 * length.start, SIGMAS * length.error, TINY),
        message=f"the longest completions grow: 95th percentile {length.now:.0f} tokens, {length.start:.0f} at the stage's start",
        evidence=_evidence(length_p95=length),
    )


def completions_at_cap(view: View) -> Reading | None:
    share = view.get(CAP)
    if share is None:
        return None
    return Reading(
        level=(share.now - share.start) / max(0.05, SIGMAS * share.error),
        message=f"{share.now:.1%} of the completions end at the token limit, {share.start:.1%} at the stage's start",
        evidence=_evidence(truncated_share=share),
    )


def context_missing(view: View) -> Reading | None:
    share = view.get(CONTEXT)
    if share is None:
        return None
    # at half of the start, or where four samples of five have nothing for the teacher to read
    level = max(0.5 * share.start / max(share.now, TINY), 0.2 / max(share.now, TINY))
    return Reading(
        level=level,
        message=f"{share.now:.1%} of the samples have a usable teacher context, {share.start:.1%} at the stage's start",
        evidence=_evidence(context_share=share),
    )


def positive_signal_fades(view: View) -> Reading | None:
    """A policy that has caught up with its teacher gets a weaker signal too; while the score is up, or the domain solved, it is not meant."""
    share, score, fall = view.get(POSITIVE), view.get(SCORE), view.score_fall()
    if share is None:
        return None
    level = (share.start - share.now) / max(0.25 * share.start, SIGMAS * share.error, TINY)
    if score is not None and fall < 1.0 and (score.now >= SOLVED or score.now - score.start > max(SCORE_FALL, SIGMAS * score.error)):
        level = min(level, 0.0)
    return Reading(
        level=level,
        message=f"the teacher prefers the sampled token at {share.now:.1%} of positions, {share.start:.1%} at the stage's start",
        evidence=_evidence(positive_share=share),
    )


def gradient_vanishes(view: View) -> Reading | None:
    """Nothing is learned although the loss gives no hint of it; a solved domain is not meant."""
    norm, loss, score = view.get(GRADIENT), view.get(LOSS), view.get(SCORE)
    if norm is None or loss is None:
        return None
    level = 0.02 * norm.start / max(norm.now, TINY)
    looks_healthy = loss.now <= loss.start + SIGMAS * loss.error
    if not looks_healthy or (score is not None and score.now >= SOLVED):
        level = min(level, 0.0)
    return Reading(
        level=min(level, 1e6),
        message=f"the gradient's norm is {norm.now:.3g} ({norm.start:.3g} at the stage's start) under a loss of {loss.now:.3g} "
        f"that looks healthy",
        evidence=_evidence(gradient_norm=norm, loss=loss) | ({} if score is None else _evidence(score=score)),
    )


def gap_grows_with_position(view: View) -> Reading | None:
    """Later tokens follow from earlier ones that the teacher would not have written."""
    tracks = [(name, track) for name in GAPS if (track := view.get(name)) is not None]
    if len(tracks) < 2:
        return None
    (_, first), (last_name, last) = tracks[0], tracks[-1]
    widening = (abs(last.now) - abs(first.now)) - (abs(last.start) - abs(first.start))
    return Reading(
        level=widening / max(0.5, abs(last.start), SIGMAS * (last.error + first.error)),
        message=f"policy and teacher part in later tokens: {last.now:.3g} nats from token {last_name.rpartition('_')[2]} on, "
        f"{first.now:.3g} at the beginning ({last.start:.3g} and {first.start:.3g} at the stage's start)",
        evidence={**_evidence(gap_first_nats=first, gap_last_nats=last), "bucket": last_name},
    )


def repeats_itself(view: View) -> Reading | None:
    share = view.get(REPEATED)
    if share is None:
        return None
    return Reading(
        level=(share.now - share.start) / max(0.1, SIGMAS * share.error),
        message=f"{share.now:.1%} of the 4-grams in a completion are repetitions, {share.start:.1%} at the stage's start",
        evidence=_evidence(repeated_4gram_share=share),
    )


def answers_alike(view: View) -> Reading | None:
    share = view.get(DISTINCT)
    if share is None:
        return None
    return Reading(
        level=0.5 * share.start / max(share.now, TINY),
        message=f"different problems get like answers: distinct-2 {share.now:.3f}, {share.start:.3f} at the stage's start",
        evidence=_evidence(distinct_2=share),
    )


def _marker(name: str, words: str) -> Callable[[View], Reading | None]:
    def detector(view: View) -> Reading | None:
        rate = view.get(name)
        if rate is None:
            return None
        # doubled, and two in a thousand tokens more than before
        rise = rate.now - rate.start
        return Reading(
            level=rise / max(2.0, rate.start, SIGMAS * rate.error),
            message=f"{words}: {rate.now:.1f} in 1000 tokens, {rate.start:.1f} at the stage's start",
            evidence=_evidence(per_1000_tokens=rate),
        )

    return detector


hedging = _marker(HEDGING, "words of doubt")
self_correction = _marker(CORRECTION, "words that take back what was written")
