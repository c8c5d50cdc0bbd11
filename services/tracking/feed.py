"""Brings one job's log to MLflow, final records only, and remembers how far it came.

Invariant: the cursor moves only after everything before it has arrived, and what is sent twice after a crash is the same to the
timestamp; MLflow then holds each point once. A step that was sent and is done again after a damaged checkpoint is not sent again.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.tracking.figures import draw_job_figures, score_matrix_figure
from services.tracking.links import CURSOR
from services.tracking.log import LOG, effective_records, read_records
from services.tracking.mlflow_calls import MlflowCalls, is_final, is_gone, metric_key
from services.tracking.report_tables import report_tables
from services.tracking.study_runs import arm_run

RUN_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
"""MLflow's words for the states in which a job has ended."""
MAX_STEPS_PER_CALL = 50
MAX_TRIES_OF_A_RECORD = 3
Record = dict[str, Any]
logger = logging.getLogger("holdfast.tracking")


@dataclass
class Cursor:
    """What must be remembered of one job; lies beside its log."""

    offset: int = 0
    experiment: str | None = None
    parent: str | None = None
    stages: dict[str, str] = field(default_factory=dict)
    """Run ids by stage name."""
    ended_stages: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    """The highest step sent, by run and key."""
    done: bool = False


class Feed:
    """One job. ``advance`` raises what MLflow's client raises, and is then simply called again."""

    def __init__(self, job_id: str, run_dir: Path, name: str, spec: dict[str, Any], *, place: Any = None):
        self.job_id = job_id
        self.status = "running"
        """The job's; one in ``RUN_STATUS`` means that the log is whole."""
        self.refused = 0
        """Records that MLflow refused for good."""
        self.undrawn = 0
        """Figures of the report that could not be drawn."""
        self._run_dir = run_dir
        self._name = name
        self._spec = spec
        self._place = place
        """``StudyPlace`` of a study's member."""
        self._failures: dict[tuple[str, int], int] = {}
        self.cursor = read_cursor(run_dir)

    @property
    def waiting_bytes(self) -> int:
        """Of the log, not sent yet; what no commit has made final is counted, too."""
        log = self._run_dir / LOG
        return 0 if self.cursor.done or not log.exists() else max(0, log.stat().st_size - self.cursor.offset)

    def advance(self, calls: MlflowCalls) -> None:
        """Send everything that is final. Raises at the first thing that did not arrive; nothing is lost then."""
        ended = self.status in RUN_STATUS
        try:
            for records, offset in self._final_parts(everything=ended):
                self._ensure_parent(calls)
                self._send(calls, records)
                self.cursor.offset = offset
                self._save()
            if ended:
                self._ensure_parent(calls)
                self._finish(calls)
        except Exception as error:
            if is_gone(error) and self.cursor.parent is not None:
                self._start_over(calls)
            raise

    def _final_parts(self, *, everything: bool) -> list[tuple[list[Record], int]]:
        """What became final behind the cursor, commit by commit, each with the offset behind it."""
        parts: list[tuple[list[Record], int]] = []
        part: list[Record] = []
        for record, offset in read_records(self._run_dir / LOG, self.cursor.offset):
            part.append(record)
            if record["kind"] == "commit":
                parts.append((effective_records(iter(part)), offset))
                part = []
        if everything and part:
            parts.append((effective_records(iter(part)), offset))
        return parts

    def _start_over(self, calls: MlflowCalls) -> None:
        """MLflow lost its data (another server, an emptied database): everything goes there again, from the log."""
        logger.warning("MLflow does not know the runs of job %s any more; its whole log is sent again", self.job_id)
        calls.forget()
        self.cursor = Cursor()
        self._save()

    # -- runs --------------------------------------------------------------------------------------------------------

    def _ensure_parent(self, calls: MlflowCalls) -> None:
        if self.cursor.parent is not None:
            return
        first = next((record["time_ms"] for record, _ in read_records(self._run_dir / LOG)), 0)
        arm = None if self._place is None else arm_run(calls, self._place)
        run_id = calls.job_run(self.job_id, self._name, first or _modified_ms(self._run_dir), parent=arm)
        calls.params(run_id, {"model": self._spec["model"], "seed": self._spec["seed"], "stages": len(self._spec["stages"])})
        calls.document(run_id, "spec.json", self._spec)
        self.cursor.experiment, self.cursor.parent = calls.experiment_id(), run_id
        self._save()

    def _run(self, calls: MlflowCalls, record: Record) -> str:
        """The run that a record belongs to; a stage's is made when its first record comes."""
        stage = record["stage"]
        if stage is None:
            return self.cursor.parent
        if stage not in self.cursor.stages:
            run_id = calls.stage_run(self.job_id, stage, self.cursor.parent, record["time_ms"])
            spec = next((item for item in self._spec["stages"] if item["name"] == stage), {})
            calls.params(run_id, {key: value for key, value in spec.items() if value is not None})
            self.cursor.stages[stage] = run_id
            self._save()
        return self.cursor.stages[stage]

    # -- sending -----------------------------------------------------------------------------------------------------

    def _send(self, calls: MlflowCalls, records: list[Record]) -> None:
        """Neighbouring metric records go together, all else one by one. What MLflow refuses for good stays in the log."""
        position = 0
        while position < len(records):
            batch = [records[position]]
            while batch[0]["kind"] == "metrics" and len(batch) < MAX_STEPS_PER_CALL:
                following = records[position + len(batch) : position + len(batch) + 1]
                if not following or following[0]["kind"] != "metrics":
                    break
                batch += following
            try:
                SENDERS[batch[0]["kind"]](self, calls, batch)
            except Exception as error:
                if is_gone(error) or not (is_final(error) or self._hopeless(calls, batch[0])):
                    raise
                self.refused += len(batch)
                logger.warning("MLflow refused %d record(s) (%s) of job %s: %s", len(batch), batch[0]["kind"], self.job_id, str(error)[:300])
            position += len(batch)

    def _hopeless(self, calls: MlflowCalls, record: Record) -> bool:
        """Whether one and the same record has failed often enough at a server that is there. Metrics are never given up."""
        if record["kind"] == "metrics" or not calls.answers():
            return False
        key = (record["kind"], record["time_ms"])
        self._failures = {key: self._failures.get(key, 0) + 1}
        return self._failures[key] >= MAX_TRIES_OF_A_RECORD

    def _send_metrics(self, calls: MlflowCalls, batch: list[Record]) -> None:
        points: dict[tuple[str, str, int], tuple[float, int]] = {}
        for record in batch:
            for run_id, step, prefix in self._targets(calls, record):
                for key, value in record["values"].items():
                    if value is not None and key.startswith(prefix):
                        points[run_id, metric_key(key), step] = (value, record["time_ms"])
        by_run: dict[str, list[tuple[str, float, int, int]]] = {}
        for (run_id, key, step), (value, time_ms) in points.items():
            if step > self.cursor.steps.get(f"{run_id} {key}", -1):
                by_run.setdefault(run_id, []).append((key, value, time_ms, step))
        for run_id, made in by_run.items():
            calls.metrics(run_id, made)
        for run_id, made in by_run.items():
            for key, _, _, step in made:
                name = f"{run_id} {key}"
                self.cursor.steps[name] = max(step, self.cursor.steps.get(name, -1))

    def _targets(self, calls: MlflowCalls, record: Record) -> list[tuple[str, int, str]]:
        """A stage's metrics go to its run by its own steps; scores go to the job's run too, by global step."""
        targets = [(self._run(calls, record), record["step"] if record["stage"] is not None else record["global_step"], "")]
        if record["stage"] is not None:
            targets.append((self.cursor.parent, record["global_step"], "eval/"))
        return targets

    def _send_table(self, calls: MlflowCalls, batch: list[Record]) -> None:
        record = batch[0]
        if record["rows"]:
            calls.table(self._run(calls, record), f"{record['name']}/step_{record['global_step']:06d}.json", record["rows"])

    def _send_params(self, calls: MlflowCalls, batch: list[Record]) -> None:
        calls.params(self._run(calls, batch[0]), batch[0]["values"])

    def _send_dataset(self, calls: MlflowCalls, batch: list[Record]) -> None:
        record = batch[0]
        calls.dataset(self._run(calls, record), record["name"], record["digest"], record["context"], record["name"])

    def _send_checkpoint(self, calls: MlflowCalls, batch: list[Record]) -> None:
        record = batch[0]
        params = {"uri": record["uri"], "global_step": str(record["global_step"])}
        identity = f"{self.job_id}/{record['stage']}/{record['global_step']}"
        calls.checkpoint(self._run(calls, record), identity, record["name"], record["global_step"], params)

    def _send_artifact(self, calls: MlflowCalls, batch: list[Record]) -> None:
        path = Path(batch[0]["path"])
        if path.is_file():
            calls.artifact(self._run(calls, batch[0]), path, batch[0]["artifact_path"])
        else:
            logger.warning("file %s of job %s is not there any more", path, self.job_id)

    def _start_stage(self, calls: MlflowCalls, batch: list[Record]) -> None:
        self._run(calls, batch[0])

    def _end_stage(self, calls: MlflowCalls, batch: list[Record]) -> None:
        record = batch[0]
        calls.end_run(self._run(calls, record), "FINISHED", record["time_ms"])
        if record["stage"] not in self.cursor.ended_stages:
            self.cursor.ended_stages.append(record["stage"])

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finish(self, calls: MlflowCalls) -> None:
        """Everything has arrived: the report's figures, and the end of every run that is still open."""
        path = self._run_dir / "report.json"
        if path.is_file():
            self._send_report(calls, path)
        ended_ms = _modified_ms(self._run_dir)
        for stage, run_id in self.cursor.stages.items():
            if stage not in self.cursor.ended_stages:
                calls.end_run(run_id, RUN_STATUS[self.status], ended_ms)
        calls.end_run(self.cursor.parent, RUN_STATUS[self.status], ended_ms)
        self.cursor.done = True
        self._save()

    def _send_report(self, calls: MlflowCalls, path: Path) -> None:
        calls.artifact(self.cursor.parent, path, None)
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return
        matrix = report.get("score_matrix") or {}
        if matrix.get("means"):
            calls.figure(self.cursor.parent, "score_matrix.png", score_matrix_figure(matrix))
            rows = [{"after": name, **dict(zip(matrix["domains"], means, strict=True))} for name, means in zip(matrix["rows"], matrix["means"], strict=True)]
            calls.table(self.cursor.parent, "score_matrix.json", rows)
        for name, rows in report_tables(report).items():
            calls.table(self.cursor.parent, f"{name}.json", rows)
        with tempfile.TemporaryDirectory() as folder:
            pictures, undrawn = draw_job_figures(report, Path(folder))
            for picture in pictures:
                calls.artifact(self.cursor.parent, picture, "figures")
        for name, error in undrawn.items():
            logger.warning("figure %s of job %s could not be drawn: %s", name, self.job_id, error)
        self.undrawn = len(undrawn)

    def _save(self) -> None:
        temporary = self._run_dir / f".{CURSOR}.tmp"
        temporary.write_text(json.dumps(asdict(self.cursor)))
        os.replace(temporary, self._run_dir / CURSOR)


SENDERS = {
    "metrics": Feed._send_metrics,
    "table": Feed._send_table,
    "params": Feed._send_params,
    "dataset": Feed._send_dataset,
    "checkpoint": Feed._send_checkpoint,
    "artifact": Feed._send_artifact,
    "stage_start": Feed._start_stage,
    "stage_end": Feed._end_stage,
}


def read_cursor(run_dir: Path) -> Cursor:
    """The cursor as it was last saved; a new one where there is none or it cannot be read, which costs a replay."""
    try:
        found = json.loads((run_dir / CURSOR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Cursor()
    known = Cursor.__dataclass_fields__
    return Cursor(**{name: value for name, value in found.items() if name in known})


def _modified_ms(run_dir: Path) -> int:
    log = run_dir / LOG
    return int((log if log.exists() else run_dir).stat().st_mtime * 1000)
