"""Feeds MLflow from the jobs' logs, in the background. Training never waits for it.

At least once, with the log's own timestamps, so that a replay adds nothing. Only committed records are sent while a job
runs, and the rest when it has ended; the place in the log and the ids of the runs are kept in the run folder.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.tracking.links import CURSOR
from services.tracking.log import LOG, effective_records, read_records

EXPERIMENT = "holdfast"
BATCH = 500
POLL_S = 1.0
MAX_BACKOFF_S = 30.0
PARAMETER_LENGTH = 500
RUN_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}

logger = logging.getLogger("holdfast.tracking")


@dataclass
class Cursor:
    """What the sender must remember of one job."""

    offset: int = 0
    experiment: str | None = None
    parent: str | None = None
    stages: dict[str, str] = field(default_factory=dict)
    done: bool = False


@dataclass
class Watched:
    job_id: str
    name: str
    run_dir: Path
    spec: dict[str, Any]
    cursor: Cursor
    status: str = "running"


class Sender:
    """``watch`` as often as you like; ``start`` once."""

    def __init__(self, tracking_uri: str, runs_root: Path, *, poll_s: float = POLL_S):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        self._uri = tracking_uri
        self._poll_s = poll_s
        self._jobs: dict[str, Watched] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._client: Any = None
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self.failures_in_a_row = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self, deadline_s: float = 5.0) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(deadline_s)

    def watch(self, job_id: str, run_dir: Path, name: str, spec: dict[str, Any], status: str = "running") -> None:
        """Send this job's log; ``status`` is the job's, and a terminal one ends its runs."""
        with self._lock:
            if job_id not in self._jobs:
                self._jobs[job_id] = Watched(job_id, name, run_dir, spec, _read_cursor(run_dir))
            self._jobs[job_id].status = status

    def is_done(self, run_dir: Path) -> bool:
        return _read_cursor(run_dir).done

    @property
    def outbox_bytes(self) -> int:
        """Of all logs, not sent yet."""
        with self._lock:
            return sum(_size(job.run_dir / LOG) - job.cursor.offset for job in self._jobs.values() if not job.cursor.done)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(min(self._poll_s * 2**self.failures_in_a_row, MAX_BACKOFF_S)):
            try:
                self.send_all()
                self.failures_in_a_row = 0
            except Exception as error:  # MLflow is away, or refuses: tried again, later and later
                self.failures_in_a_row = min(self.failures_in_a_row + 1, 8)
                logger.warning("MLflow did not take the records: %s", str(error)[:300])

    def send_all(self) -> None:
        """One round over all jobs; raises what MLflow raised."""
        with self._lock:
            jobs = [job for job in self._jobs.values() if not job.cursor.done]
        for job in jobs:
            self._send_job(job)

    def _send_job(self, job: Watched) -> None:
        ended = job.status in RUN_STATUS
        records, offset = self._next_records(job, everything=ended)
        if records or ended:
            self._ensure_parent(job)
        for record in records:
            SENDERS[record["kind"]](self, job, record)
        if offset != job.cursor.offset:
            job.cursor.offset = offset
            _write_cursor(job.run_dir, job.cursor)
        if ended:
            self._finish(job)

    def _next_records(self, job: Watched, *, everything: bool) -> tuple[list[dict[str, Any]], int]:
        """Records after the cursor that are final, merged by step into batches of metrics, and the offset after them."""
        seen = list(read_records(job.run_dir / LOG, job.cursor.offset))
        if not everything:
            commits = [index for index, (record, _) in enumerate(seen) if record["kind"] == "commit"]
            seen = seen[: commits[-1] + 1] if commits else []
        if not seen:
            return [], job.cursor.offset
        return effective_records(record for record, _ in seen), seen[-1][1]

    # -- runs --------------------------------------------------------------------------------------------------------

    def _mlflow(self) -> Any:
        if self._client is None:
            from mlflow import MlflowClient

            self._client = MlflowClient(self._uri)
        return self._client

    def _ensure_parent(self, job: Watched) -> None:
        if job.cursor.parent is not None:
            return
        client = self._mlflow()
        found = client.get_experiment_by_name(EXPERIMENT)
        job.cursor.experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
        job.cursor.parent, created = self._adopt_or_create(job, stage=None)
        if created:
            self._describe(job, job.cursor.parent, {"model": job.spec["model"], "seed": job.spec["seed"], "stages": len(job.spec["stages"])})
            client.log_dict(job.cursor.parent, job.spec, "spec.json")
        _write_cursor(job.run_dir, job.cursor)

    def _stage_run(self, job: Watched, stage: str | None) -> str:
        if stage is None:
            return job.cursor.parent
        if stage not in job.cursor.stages:
            run_id, created = self._adopt_or_create(job, stage=stage)
            if created:
                spec = next((item for item in job.spec["stages"] if item["name"] == stage), {})
                self._describe(job, run_id, {key: value for key, value in spec.items() if value is not None})
            job.cursor.stages[stage] = run_id
            _write_cursor(job.run_dir, job.cursor)
        return job.cursor.stages[stage]

    def _adopt_or_create(self, job: Watched, *, stage: str | None) -> tuple[str, bool]:
        """The run that carries this job's and stage's tags, where an earlier sender made it; otherwise a new one."""
        client = self._mlflow()
        tags = {"holdfast.job_id": job.job_id, "holdfast.stage": stage or "", "mlflow.runName": stage or job.name}
        if stage is not None:
            tags["mlflow.parentRunId"] = job.cursor.parent
        query = f"tags.`holdfast.job_id` = '{job.job_id}' and tags.`holdfast.stage` = '{stage or ''}'"
        known = client.search_runs([job.cursor.experiment], query, max_results=1)
        if known:
            return known[0].info.run_id, False
        return client.create_run(job.cursor.experiment, tags=tags, run_name=tags["mlflow.runName"]).info.run_id, True

    def _describe(self, job: Watched, run_id: str, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value if isinstance(value, str) else json.dumps(value)) for key, value in values.items()]
        self._mlflow().log_batch(run_id, params=[Param(p.key, p.value[:PARAMETER_LENGTH]) for p in params])

    def _finish(self, job: Watched) -> None:
        """Figures of the report, then the end of every run."""
        client = self._mlflow()
        report = job.run_dir / "report.json"
        if report.exists():
            self._send_report(job, json.loads(report.read_text()))
        for run_id in (*job.cursor.stages.values(), job.cursor.parent):
            client.set_terminated(run_id, RUN_STATUS[job.status])
        job.cursor.done = True
        _write_cursor(job.run_dir, job.cursor)

    def _send_report(self, job: Watched, report: dict[str, Any]) -> None:
        from services.tracking.figures import score_matrix_figure

        client = self._mlflow()
        client.log_artifact(job.cursor.parent, str(job.run_dir / "report.json"))
        matrix = report.get("score_matrix") or {}
        if matrix.get("means"):
            client.log_figure(job.cursor.parent, score_matrix_figure(matrix), "score_matrix.png")
            columns = {"row": matrix["rows"], **{name: [row[i] for row in matrix["means"]] for i, name in enumerate(matrix["domains"])}}
            client.log_table(job.cursor.parent, columns, "score_matrix.json")

    # -- records by kind ---------------------------------------------------------------------------------------------

    def _send_metrics(self, job: Watched, record: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        for run_id, step in self._targets(job, record):
            metrics = [Metric(key, value, record["time_ms"], step) for key, value in record["values"].items()]
            for start in range(0, len(metrics), BATCH):
                self._mlflow().log_batch(run_id, metrics=metrics[start : start + BATCH])

    def _targets(self, job: Watched, record: dict[str, Any]) -> list[tuple[str, int]]:
        """A stage's metrics go to its run by its own steps; scores go to the job's run too, by global step."""
        targets = [(self._stage_run(job, record["stage"]), record["step"])]
        if record["stage"] is not None and any(key.startswith("eval/") for key in record["values"]):
            targets.append((job.cursor.parent, record["global_step"]))
        return targets

    def _send_table(self, job: Watched, record: dict[str, Any]) -> None:
        rows = record["rows"]
        if rows:
            columns = {key: [row.get(key) for row in rows] for key in rows[0]}
            name = f"{record['name']}/step_{record['global_step']:06d}.json"
            self._mlflow().log_table(self._stage_run(job, record["stage"]), columns, name)

    def _send_params(self, job: Watched, record: dict[str, Any]) -> None:
        self._describe(job, self._stage_run(job, record["stage"]), record["values"])

    def _send_dataset(self, job: Watched, record: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=record["name"], digest=record["digest"][:36], source_type="holdfast", source=json.dumps({"name": record["name"]}))
        given = DatasetInput(dataset=data, tags=[InputTag("mlflow.data.context", record["context"])])
        self._mlflow().log_inputs(self._stage_run(job, record["stage"]), datasets=[given])

    def _send_checkpoint(self, job: Watched, record: dict[str, Any]) -> None:
        """A model whose weights stay where they are."""
        import mlflow

        run_id = self._stage_run(job, record["stage"])
        client = self._mlflow()
        query = f"name = '{record['name']}' and source_run_id = '{run_id}'"
        if not client.search_logged_models([job.cursor.experiment], query):
            mlflow.set_tracking_uri(self._uri)
            mlflow.create_external_model(
                name=record["name"],
                source_run_id=run_id,
                experiment_id=job.cursor.experiment,
                params={"uri": record["uri"], "global_step": str(record["global_step"])},
                model_type="checkpoint",
            )

    def _send_artifact(self, job: Watched, record: dict[str, Any]) -> None:
        self._mlflow().log_artifact(self._stage_run(job, record["stage"]), record["path"], record["artifact_path"])

    def _start_stage(self, job: Watched, record: dict[str, Any]) -> None:
        self._stage_run(job, record["stage"])

    def _end_stage(self, job: Watched, record: dict[str, Any]) -> None:
        self._mlflow().set_terminated(self._stage_run(job, record["stage"]), "FINISHED", record["time_ms"])


SENDERS = {
    "metrics": Sender._send_metrics,
    "table": Sender._send_table,
    "params": Sender._send_params,
    "dataset": Sender._send_dataset,
    "checkpoint": Sender._send_checkpoint,
    "artifact": Sender._send_artifact,
    "stage_start": Sender._start_stage,
    "stage_end": Sender._end_stage,
}


def _read_cursor(run_dir: Path) -> Cursor:
    path = run_dir / CURSOR
    return Cursor(**json.loads(path.read_text())) if path.exists() else Cursor()


def _write_cursor(run_dir: Path, cursor: Cursor) -> None:
    temporary = run_dir / f".{CURSOR}.tmp"
    temporary.write_text(json.dumps(asdict(cursor)))
    os.replace(temporary, run_dir / CURSOR)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
