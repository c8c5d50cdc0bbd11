"""What a stage costs elsewhere, as the lead sees it: the collapse watch of every step, and parameter drift where scores are taken.

The lead's work beside the training loop. Invariant: nothing here changes a step; a warning is an event with its evidence, a
figure is a metric, and a watch that was restored from a checkpoint goes on as if it had never stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from cluster.spec.job import ResolvedStage
from services.evaluation.collapse import CollapseWatch
from services.scheduler.reporting import write_json
from trainer.diagnostics.drift import measure_drift

STATE_FILE = "collapse.json"


class SideWatch:
    """``base_folder`` is the base model; ``run_dir`` holds the policies of the stages that are done; ``when`` drift is measured."""

    def __init__(
        self, link: Any, log: Any, chat: Any, *, base_folder: Path, run_dir: Path, stages: tuple[ResolvedStage, ...], when: str = "evaluations"
    ):
        self._link, self._log, self._stages, self._when = link, log, stages, when
        self._base, self._run_dir = base_folder, run_dir
        self._watch = CollapseWatch(decode=chat.decode)
        self._restored: dict[str, Any] | None = None

    def begin_stage(self, stage: ResolvedStage, *, resumed: bool) -> None:
        """Forget the last stage, or go on in the middle of this one."""
        kept, self._restored = self._restored, None
        if resumed and kept is not None and kept.get("stage") == stage.name:
            self._watch.restore(kept)
        else:
            self._watch.begin_stage(stage.name)

    def observe(self, step: int, values: dict[str, float], groups: list) -> dict[str, float]:
        """The step's collapse metrics; its warnings become events of the job."""
        found = self._watch.observe(step, values, groups)
        for warning in found.warnings:
            self._link.call("collapse_warning", warning.to_json())
        return dict(found.metrics)

    def drift(self, stage: ResolvedStage, step: int, global_step: int, snapshot: Path) -> None:
        """Drift of the published weights against the base model and against where the stage began, as metrics of the stage."""
        if self._when == "never" or (self._when == "stage_ends" and step < stage.steps):
            return
        started = time.perf_counter()
        values = measure_drift(self._base, snapshot).metrics("drift/base")
        before = self._stage_start(stage)
        if before == self._base:
            values |= {name.replace("drift/base", "drift/stage", 1): value for name, value in values.items()}
        else:
            values |= measure_drift(before, snapshot).metrics("drift/stage")
        values["drift/seconds"] = time.perf_counter() - started
        self._log.metrics(stage=stage.name, stage_index=stage.index, step=step, global_step=global_step, values=values)

    def _stage_start(self, stage: ResolvedStage) -> Path:
        if stage.index == 0:
            return self._base
        before = self._stages[stage.index - 1]
        return self._run_dir / "stages" / f"{before.index}-{before.name}" / "policy"

    def save(self, folder: Path) -> None:
        """Into a checkpoint that is being written."""
        write_json(folder / STATE_FILE, self._watch.state())

    def load(self, folder: Path) -> None:
        """From a checkpoint; one that an older version wrote has no such file."""
        path = folder / STATE_FILE
        self._restored = json.loads(path.read_text()) if path.exists() else None
