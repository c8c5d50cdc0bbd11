"""Brings one study to MLflow: its run, a run for each arm, and now and then the report of what has ended so far.

Invariant: only looks at records and writes to MLflow, in the sender's thread; a report that cannot be made is logged and made again
when the next member has ended, records that cannot be read are asked for again. Runs are found again by their tags, so a lost cursor costs a replay and no second run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.tracking.links import CURSOR
from services.tracking.mlflow_calls import MlflowCalls, is_gone
from services.tracking.study_runs import milliseconds

RUN_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
REPORT_EVERY_S = 600.0
"""At most so often while members are still to come: a report resamples and draws every figure of every arm."""
REPORT_SHARE = 0.02
"""Of the time at most: a large study's report takes a minute of a busy machine, and its members need that minute."""
FIRST_REPORT_AFTER = 2
AGAIN_AFTER_S = 60.0
"""Where the records could not be read."""
logger = logging.getLogger("holdfast.tracking")


@dataclass
class StudyCursor:
    """What must be remembered of one study; lies in its folder."""

    experiment: str | None = None
    study: str | None = None
    """Run id."""
    arms: dict[str, str] = field(default_factory=dict)
    """Run ids by arm."""
    reported: list[Any] | None = None
    """Of the last report that was sent: the members that had ended, and when the study had (null before). A resume brings the same
    number again, never the same time."""
    ended: str | None = None
    """The status that the runs were ended with."""


@dataclass(frozen=True, slots=True)
class _Report:
    """One that was made and is to be sent."""

    state: list[Any]
    report: dict[str, Any]
    figures: dict[str, Any]
    paths: list[Path]
    """The files that were written."""


class StudyFeed:
    """One study. ``advance`` raises what MLflow's client raises, and is then simply called again."""

    def __init__(self, study: Any, folder: Path, records: Callable[[], list[dict[str, Any]]], *, clock: Callable[[], float] = time.monotonic):
        """``study``: a ``StudyRecord``; ``records``: those of the members that have ended, asked for when a report is due."""
        self.study = study
        self.status = "queued"
        self.num_ended = 0
        self._folder = folder
        self._records = records
        self._clock = clock
        self._made: _Report | None = None
        self._made_at = -math.inf
        self._took_s = 0.0
        self._again_at = -math.inf
        self.cursor = _read_cursor(folder)

    @property
    def is_done(self) -> bool:
        """Whether MLflow has all there is of a study that has ended."""
        return self.status in RUN_STATUS and self.cursor.ended == self.status and self.cursor.reported == self._state

    @property
    def _state(self) -> list[Any]:
        """What a report of now would be of."""
        return [self.num_ended, self.study.finished_at]

    def advance(self, calls: MlflowCalls) -> None:
        """Send what is due."""
        try:
            self._ensure_runs(calls)
            if self._report_is_due():
                self._send_report(calls)
            if self.status in RUN_STATUS and self.cursor.ended != self.status:
                self._end(calls)
            elif self.status not in RUN_STATUS and self.cursor.ended is not None:
                self._reopen(calls)
        except Exception as error:
            if is_gone(error):
                logger.warning("MLflow does not know the runs of study %s any more; they are made again", self.study.name)
                calls.forget()
                self.cursor = StudyCursor()
                self._save()
            raise

    def _ensure_runs(self, calls: MlflowCalls) -> None:
        if self.cursor.study is not None:
            return
        study, spec = self.study, self.study.spec
        started = milliseconds(study.created_at)
        run_id = calls.study_run(study.id, study.name, started)
        arms = {arm["name"]: calls.arm_run(study.id, arm["name"], run_id, started) for arm in spec["arms"]}
        for arm in spec["arms"]:
            calls.params(arms[arm["name"]], arm.get("set") or {})
        calls.params(run_id, {"arms": list(arms), "orders": [order["name"] for order in spec.get("orders") or ()]})
        calls.document(run_id, "study.json", spec)
        self.cursor = StudyCursor(experiment=calls.experiment_id(), study=run_id, arms=arms)
        self._save()

    def _report_is_due(self) -> bool:
        if self._made is not None:
            return True
        if self.cursor.reported == self._state or self._clock() < self._again_at:
            return False
        if self.status in RUN_STATUS:
            return True
        wait_s = max(REPORT_EVERY_S, self._took_s / REPORT_SHARE)
        return self.num_ended >= FIRST_REPORT_AFTER and self._clock() - self._made_at >= wait_s

    def _send_report(self, calls: MlflowCalls) -> None:
        """Make it and send it; one that MLflow did not take is kept and sent when it answers."""
        state = self._state if self._made is None else self._made.state
        try:
            if self._made is None:
                records = self._read_records()
                if records is None:
                    return
                self._made = self._make_report(records, state)
                self._took_s = self._clock() - self._made_at
            sending = self._clock()
            self._send(calls, self._made)  # draws them once more, as PNGs
            self._took_s += self._clock() - sending
        except Exception as error:
            if hasattr(error, "error_code") or isinstance(error, OSError):
                raise  # MLflow's, or the connection's: sent again
            # a report that cannot be made would not be made better by the next try, and must not keep the jobs' records back
            logger.exception("the report of study %s could not be made", self.study.name)
        self._made = None
        self.cursor.reported = state
        self._save()

    def _read_records(self) -> list[dict[str, Any]] | None:
        """None where they cannot be had now: the store, or Ray, is away."""
        try:
            records = self._records()
        except Exception:  # of whatever kind: it is not the report's fault, and keeps nothing else back
            logger.warning("the records of study %s could not be read; tried again in %.0f s", self.study.name, AGAIN_AFTER_S, exc_info=True)
            self._again_at = self._clock() + AGAIN_AFTER_S
            return None
        self._made_at = self._clock()
        return records

    def _make_report(self, records: list[dict[str, Any]], state: list[Any]) -> _Report:
        from cluster.spec.study import StudySpec
        from services.evaluation.studies import build_study_report, study_figures, write_html

        report = build_study_report(StudySpec.model_validate(self.study.spec), records)
        self._folder.mkdir(parents=True, exist_ok=True)
        paths = [self._folder / "report.json", self._folder / "report.html"]
        paths[0].write_text(json.dumps(report, indent=1), encoding="utf-8")
        write_html(report, paths[1])
        return _Report(state, report, study_figures(report), paths)

    def _send(self, calls: MlflowCalls, made: _Report) -> None:
        num_ended = made.state[0]
        for path in made.paths:
            calls.artifact(self.cursor.study, path, None)
        for name, figure in made.figures.items():
            calls.figure(self.cursor.study, f"figures/{name}.png", figure)
        now = int(time.time() * 1000)
        calls.metrics(self.cursor.study, [("members_ended", float(num_ended), now, num_ended)])
        for arm, run_id in self.cursor.arms.items():
            points = [(key, value, now, num_ended) for key, value in arm_means(made.report, arm).items()]
            if points:
                calls.metrics(run_id, points)

    def _end(self, calls: MlflowCalls) -> None:
        ended = milliseconds(self.study.finished_at) if self.study.finished_at else int(time.time() * 1000)
        for run_id in (*self.cursor.arms.values(), self.cursor.study):
            calls.end_run(run_id, RUN_STATUS[self.status], ended)
        self.cursor.ended = self.status
        self._save()

    def _reopen(self, calls: MlflowCalls) -> None:
        """A resume has queued members again."""
        for run_id in (self.cursor.study, *self.cursor.arms.values()):
            calls.reopen_run(run_id)
        self.cursor.ended = None
        self._save()

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{CURSOR}.tmp"
        temporary.write_text(json.dumps(asdict(self.cursor)))
        os.replace(temporary, self._folder / CURSOR)


def arm_means(report: dict[str, Any], arm: str) -> dict[str, float]:
    """The mean figures of an arm, <figure>/<order> for one order and the figure's name over all of them."""
    found = {}
    for table in report["figures"]:
        rows = [row for row in table["rows"] if row["arm"] == arm and row["mean"] is not None]
        for row in rows:
            alone = row["order"] is None or len(rows) == 1
            found[table["figure"] if alone else f"{table['figure']}/{row['order']}"] = float(row["mean"])
    return found


def _read_cursor(folder: Path) -> StudyCursor:
    try:
        found = json.loads((folder / CURSOR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return StudyCursor()
    known = StudyCursor.__dataclass_fields__
    return StudyCursor(**{name: value for name, value in found.items() if name in known})
