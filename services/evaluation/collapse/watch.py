"""The collapse watch: handed every step's metrics and rollouts by the lead, it says what goes wrong and with what evidence.

Invariants: it never raises on a metric that is missing or not finite; a sign is announced once per episode, and once when it is
over; ``state`` is JSON, and a watch restored from it goes on as if it had never stopped. Nothing is known of methods: a detector
whose metrics a method does not record is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from services.evaluation.collapse.amplification import Amplification
from services.evaluation.collapse.amplified import amplification_reading
from services.evaluation.collapse.detectors import COUNTED, DETECTORS
from services.evaluation.collapse.episodes import Episode
from services.evaluation.collapse.records import CollapseWarning, Findings, Reading, Severity
from services.evaluation.collapse.signs import (
    CAP,
    CONTEXT,
    CORRECTION,
    DISTINCT,
    ENTROPY,
    GAPS,
    GRADIENT,
    HEDGING,
    KL,
    LENGTH,
    LOSS,
    POSITIVE,
    PREFIX,
    REPEATED,
    SCORE,
    View,
)
from services.evaluation.collapse.texts import StepTexts, format_items, ngram_items, read_rollouts
from services.evaluation.collapse.tracks import START_STEPS, Track

FORMAT = "holdfast-collapse-1"
FOLLOWED = (SCORE, LENGTH, CAP, ENTROPY, KL, POSITIVE, CONTEXT, GRADIENT, LOSS, PREFIX, *GAPS, REPEATED, DISTINCT, HEDGING, CORRECTION)
REFERENCES = {True: "at the base model", False: "at the stage's start"}
"""What amplification is against: the base's completions where they were handed in, else the first steps."""
HIGHEST_LEVEL = 100.0
"""Levels are cut here: a ratio to zero is no better evidence than one to a hundredth."""


class CollapseWatch:
    """One per attempt; ``begin_stage``, then ``observe`` once a step."""

    def __init__(self, decode: Callable[[Sequence[int]], str] | None = None):
        """``decode``: token ids to text, for the words of a warning; without it they name ids."""
        self._decode = decode
        self.begin_stage("")

    def begin_stage(
        self,
        stage: str,
        *,
        base: Iterable[tuple[Sequence[int], str]] | None = None,
        solutions: Iterable[tuple[Sequence[int], str]] = (),
    ) -> None:
        """Forget the last stage. ``base``: (token ids, text) of completions of the base model on this stage's domains; without
        it the stage's first ``START_STEPS`` steps are the base. ``solutions``: the same of the domains' own solutions; what they
        hold is not amplified where the policy writes it as often."""
        self._stage = stage
        self._steps = 0
        self._tracks: dict[str, Track] = {}
        self._episodes = {code: Episode() for code in (*DETECTORS, *COUNTED)}
        self._counts = {code: Amplification() for code in COUNTED}
        self._base_given = base is not None
        for ids, text in base or ():
            self._counts["ngrams_amplified"].base.add([ngram_items(list(map(int, ids)))])
            self._counts["format_amplified"].base.add([format_items(text)])
        for ids, text in solutions:
            self._counts["ngrams_amplified"].solutions.add([ngram_items(list(map(int, ids)))])
            self._counts["format_amplified"].solutions.add([format_items(text)])
        for counts in self._counts.values():
            counts.base.freeze()
            counts.solutions.freeze()

    def observe(self, step: int, metrics: Mapping[str, float], groups: Sequence[Any]) -> Findings:
        """One step of the stage: what the loop recorded, and its RolloutGroups."""
        texts = read_rollouts(groups)
        values = {**metrics, **texts.metrics}
        for name in FOLLOWED:
            if (value := values.get(name)) is not None:
                self._tracks.setdefault(name, Track()).observe(step, float(value))
        self._count(texts)
        self._steps += 1
        readings = self._readings(step)
        warnings = [warning for code, reading in readings.items() if (warning := self._advance(code, reading, step)) is not None]
        return Findings(metrics={**texts.metrics, **self._metrics(readings)}, warnings=warnings)

    # -- one step ----------------------------------------------------------------------------------------------------

    def _count(self, texts: StepTexts) -> None:
        for counts, items in (
            (self._counts["ngrams_amplified"], texts.ngrams),
            (self._counts["format_amplified"], texts.formats),
        ):
            counts.add(items)
            if not self._base_given and self._steps < START_STEPS:
                counts.base.add(items)
            if self._steps == START_STEPS:
                counts.base.freeze()

    def _readings(self, step: int) -> dict[str, Reading | None]:
        view = View(self._tracks, step)
        readings = {code: detector(view) for code, (_, detector) in DETECTORS.items()}
        ready = self._steps > START_STEPS
        describe = {"ngrams_amplified": self._words, "format_amplified": str}
        for code, (_, kind, least_z) in COUNTED.items():
            readings[code] = amplification_reading(
                self._counts[code], kind, describe[code], least_z=least_z, ready=ready, reference=REFERENCES[self._base_given]
            )
        return readings

    def _words(self, item: str) -> str:
        return item if self._decode is None else self._decode([int(one) for one in item.split()])

    def _advance(self, code: str, reading: Reading | None, step: int) -> CollapseWarning | None:
        episode = self._episodes[code]
        since = episode.since
        change = episode.advance(None if reading is None else reading.level, step)
        if change is None:
            return None
        raised = change == "raised"
        message = reading.message if raised else f"over since step {since}'s warning; now: {reading.message}"
        evidence = {**reading.evidence, "level": min(reading.level, HIGHEST_LEVEL)}
        return CollapseWarning(
            code=code,
            severity=_severity(code),
            raised=raised,
            message=message,
            evidence=evidence if raised else {**evidence, "raised_at_step": since},
            step=step,
            stage=self._stage,
        )

    def _metrics(self, readings: Mapping[str, Reading | None]) -> dict[str, float]:
        levels = {f"collapse/level/{code}": _bounded(reading.level) for code, reading in readings.items() if reading is not None}
        active = [code for code, episode in self._episodes.items() if episode.active]
        return {
            **levels,
            "collapse/active": float(len(active)),
            "collapse/active_critical": float(sum(_severity(code) == "critical" for code in active)),
        }

    # -- between processes -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For the checkpoint; JSON."""
        return {
            "format": FORMAT,
            "stage": self._stage,
            "steps": self._steps,
            "base_given": self._base_given,
            "tracks": {name: track.state() for name, track in self._tracks.items()},
            "episodes": {code: [episode.active, episode.count, episode.since] for code, episode in self._episodes.items()},
            "counts": {code: counts.state() for code, counts in self._counts.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` on a state of another format. A detector that the state does not know starts afresh."""
        if state.get("format") != FORMAT:
            raise ValueError(f"collapse watch: format is {state.get('format')!r}, this version reads {FORMAT!r}")
        self.begin_stage(state["stage"])
        self._steps, self._base_given = int(state["steps"]), bool(state["base_given"])
        self._tracks = {name: Track.restored(track) for name, track in state["tracks"].items()}
        self._episodes |= {code: Episode(*episode) for code, episode in state["episodes"].items() if code in self._episodes}
        self._counts |= {code: Amplification.restored(counts) for code, counts in state["counts"].items() if code in COUNTED}


def _severity(code: str) -> Severity:
    return DETECTORS[code][0] if code in DETECTORS else COUNTED[code][0]


def _bounded(level: float) -> float:
    return max(-HIGHEST_LEVEL, min(level, HIGHEST_LEVEL))
