"""What a stage costs elsewhere, as the lead sees it: the collapse watch of every step, and drift of the parameters and of the
responses where scores are taken.

The lead's work beside the training loop. Invariant: nothing here changes a step; a warning is an event with its evidence, a
figure is a metric, and a watch that was restored from a checkpoint goes on as if it had never stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.spec.job import ResolvedStage
from services.evaluation.collapse import CollapseWatch
from services.evaluation.evaluator import DomainScores
from services.scheduler.reporting import write_json
from services.scheduler.response_watch import ResponseWatch
from trainer.diagnostics.drift import measure_drift
from trainer.diagnostics.spectra_cache import SpectraCache

STATE_FILE = "collapse.json"
DRIFT_FOLDER = "drift"
"""Of a stage: a file for each measurement."""


class SideWatch:
    """``base_folder`` is the base model; ``run_dir`` holds the policies of the stages that are done; ``when`` parameter drift is
    measured; ``responses`` measures what the answers do."""

    def __init__(
        self,
        link: Any,
        log: Any,
        chat: Any,
        *,
        base_folder: Path,
        run_dir: Path,
        stages: tuple[ResolvedStage, ...],
        when: str = "evaluations",
        responses: ResponseWatch | None = None,
    ):
        self._link, self._log, self._stages, self._when = link, log, stages, when
        self._base, self._run_dir = base_folder, run_dir
        self._chat, self._responses = chat, responses
        self._spectra = SpectraCache()
        self._watch = CollapseWatch(decode=chat.decode)
        self._restored: dict[str, Any] | None = None
        self._samples_policy = True

    def base_row(self, scored: Mapping[str, DomainScores], *, engines_hold_base: bool) -> None:
        """After the base model's row of the score matrix: keep the base's answers. Before the first ``begin_stage``."""
        if self._responses is not None:
            self._responses.base_row(scored, engines_hold_base=engines_hold_base)

    def begin_stage(self, stage: ResolvedStage, *, resumed: bool, solutions: Sequence[np.ndarray] = ()) -> None:
        """Forget the last stage, or go on in the middle of this one. ``solutions``: token ids of the domains' own answers."""
        kept, self._restored = self._restored, None
        self._samples_policy = stage.composition.experience.kind == "policy"
        if resumed and kept is not None and kept.get("stage") == stage.name:
            self._watch.restore(kept)
        else:
            self._watch.begin_stage(stage.name, base=self._base_answers(stage), solutions=self._with_text(solutions))

    def _base_answers(self, stage: ResolvedStage) -> list[tuple[np.ndarray, str]] | None:
        """(token ids, text) of the base on the stage's domains, as many of each as its weight asks for; None without them."""
        if self._responses is None:
            return None
        found = self._responses.base_completions([part.name for part in stage.domains])
        if found is None:
            return None
        counts = shares({part.name: (part.weight, len(found[part.name].token_ids)) for part in stage.domains})
        return self._with_text([ids for name, first in found.items() for ids in first.token_ids[: counts[name]]])

    def _with_text(self, completions: Sequence[np.ndarray]) -> list[tuple[np.ndarray, str]]:
        return [(ids, self._chat.decode(ids)) for ids in completions]

    def observe(self, step: int, values: dict[str, float], groups: list) -> dict[str, float]:
        """The step's collapse metrics; its warnings become events of the job. Of a stage that learns from data no step says anything of
        the policy's own completions: its evaluations alone are looked at (``Evaluations``)."""
        if not self._samples_policy:
            return {}
        found = self._watch.observe(step, values, groups)
        for warning in found.warnings:
            self._link.call("collapse_warning", warning.to_json())
        return dict(found.metrics)

    def drift(
        self, stage: ResolvedStage, step: int, global_step: int, snapshot: Path, scored: Mapping[str, DomainScores] | None = None
    ) -> None:
        """Drift of the published weights, and of their answers, against the base model and against where the stage began.

        ``scored`` is what the evaluation has just found of these weights.
        """
        start = self._stage_start(stage)
        if self._when == "evaluations" or (self._when == "stage_ends" and step >= stage.steps):
            self._parameter_drift(stage, step, global_step, snapshot, start)
        if self._responses is not None:
            self._responses.measure(stage, step, global_step, snapshot, scored or {}, start=None if start == self._base else start)

    def _parameter_drift(self, stage: ResolvedStage, step: int, global_step: int, snapshot: Path, before: Path) -> None:
        """As metrics of the stage; both sides' spectra are computed once where the cache has room for them."""
        started = time.perf_counter()
        self._spectra.retain([self._base, before, snapshot])
        base = measure_drift(self._base, snapshot, cache=self._spectra)
        start = base if before == self._base else measure_drift(before, snapshot, cache=self._spectra)
        values = base.metrics("drift/base") | start.metrics("drift/stage")
        path = self._drift_file(stage.index, stage.name, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": 1, "stage": stage.name, "step": step, "base": base.to_dict(), "start": start.to_dict()})
        values["drift/seconds"] = time.perf_counter() - started
        self._log.metrics(stage=stage.name, stage_index=stage.index, step=step, global_step=global_step, values=values)
        if step >= stage.steps:
            self._log.artifact(path, "drift", stage=stage.name, global_step=global_step)

    def _drift_file(self, index: int, name: str, step: int) -> Path:
        """Of one measurement: every matrix with its sums and ratios, against the base and against the stage's first weights."""
        return self._run_dir / "stages" / f"{index}-{name}" / DRIFT_FOLDER / f"step-{step:06d}.json"

    def _stage_start(self, stage: ResolvedStage) -> Path:
        if stage.index == 0:
            return self._base
        before = self._stages[stage.index - 1]
        return self._run_dir / "stages" / f"{before.index}-{before.name}" / "policy"

    def rewind(self, stage_index: int, step: int) -> None:
        """Forget what was recorded after the step that a restart goes on from."""
        undone = {self._drift_file(stage.index, stage.name, 0).parent: step if stage.index == stage_index else -1 for stage in self._stages[stage_index:]}
        for folder, kept in undone.items():
            for path in folder.glob("step-*.json"):
                if int(path.stem.removeprefix("step-")) > kept:
                    path.unlink()
        if self._responses is not None:
            self._responses.rewind(stage_index, step)

    def save(self, folder: Path) -> None:
        """Into a checkpoint that is being written."""
        write_json(folder / STATE_FILE, self._watch.state())

    def load(self, folder: Path) -> None:
        """From a checkpoint; one that an older version wrote has no such file."""
        path = folder / STATE_FILE
        self._restored = json.loads(path.read_text()) if path.exists() else None


def shares(parts: Mapping[str, tuple[float, int]]) -> dict[str, int]:
    """How many answers of each domain, from its (weight, answers there are): in the weights' proportion, as many as there are
    enough of, and one at least."""
    most = min(there / weight for weight, there in parts.values() if weight > 0)
    return {name: max(1, min(there, round(weight * most))) for name, (weight, there) in parts.items()}
