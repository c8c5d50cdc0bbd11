"""MLflow behind calls that may be repeated: each one looks for what an earlier try may have left before it makes anything.

Invariant: calling any method twice with the same arguments leaves MLflow as calling it once. Run ids and timestamps are always
given, so MLflow's own notion of an active run and of the time plays no part.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.tracking.server import is_healthy

HTTP_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}
"""MLflow's client reads them at every call; its defaults would block a call to a dead server for four minutes."""
JOB_TAG, STAGE_TAG, CHECKPOINT_TAG = "holdfast.job_id", "holdfast.stage", "holdfast.checkpoint"
STUDY_TAG, ARM_TAG = "holdfast.study_id", "holdfast.arm"
PARENT_TAG = "mlflow.parentRunId"
MAX_METRICS_PER_CALL = 500
MAX_PARAMS_PER_CALL = 100
MAX_PARAMETER_CHARACTERS = 500
MAX_DIGEST_CHARACTERS = 36
MAX_TAG_CHARACTERS = 7000
_ILLEGAL = re.compile(r"[^A-Za-z0-9_\-. :/]")
_global_uri = threading.Lock()


class MlflowCalls:
    """One MLflow server and one experiment on it."""

    def __init__(self, uri: str, experiment: str):
        for name, value in HTTP_SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._uri = uri
        self._experiment = experiment
        self._client = MlflowClient(tracking_uri=uri)
        self._experiment_id: str | None = None

    def experiment_id(self) -> str:
        """The experiment's id; made if it is not there."""
        from mlflow.exceptions import MlflowException

        if self._experiment_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                try:
                    self._experiment_id = self._client.create_experiment(self._experiment)
                except MlflowException:
                    found = self._client.get_experiment_by_name(self._experiment)  # somebody else made it in between
                    if found is None:
                        raise
            self._experiment_id = self._experiment_id or found.experiment_id
        return self._experiment_id

    def forget(self) -> None:
        """The server has lost what was on it: look the experiment up again."""
        self._experiment_id = None

    def answers(self) -> bool:
        """Whether the server is there at all."""
        return is_healthy(self._uri)

    # -- runs --------------------------------------------------------------------------------------------------------

    def study_run(self, study_id: str, name: str, started_ms: int) -> str:
        """The run of a study."""
        return self._run({STUDY_TAG: study_id, ARM_TAG: ""}, name, {}, started_ms)

    def arm_run(self, study_id: str, arm: str, parent: str, started_ms: int) -> str:
        """The run of an arm, as a child of its study's."""
        return self._run({STUDY_TAG: study_id, ARM_TAG: arm}, arm, {PARENT_TAG: parent}, started_ms)

    def job_run(self, job_id: str, name: str, started_ms: int, *, parent: str | None = None) -> str:
        """The run of a job; a study's member is a child of its arm's."""
        return self._run({JOB_TAG: job_id, STAGE_TAG: ""}, name, {PARENT_TAG: parent} if parent else {}, started_ms)

    def stage_run(self, job_id: str, stage: str, parent: str, started_ms: int) -> str:
        """The run of a stage, as a child of its job's."""
        return self._run({JOB_TAG: job_id, STAGE_TAG: stage}, stage, {PARENT_TAG: parent}, started_ms)

    def _run(self, tags: dict[str, str], name: str, more: dict[str, str], started_ms: int) -> str:
        (whose, identity), (part, name_of_part) = tags.items()
        query = f"tags.`{whose}` = '{identity}'"
        for run in self._client.search_runs([self.experiment_id()], query, max_results=200, order_by=["attributes.start_time ASC"]):
            if run.data.tags.get(part, "") == name_of_part:
                return run.info.run_id
        return self._client.create_run(self.experiment_id(), start_time=started_ms, tags=tags | more, run_name=name).info.run_id

    def end_run(self, run_id: str, status: str, ended_ms: int) -> None:
        """``status`` is FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status, ended_ms)

    def reopen_run(self, run_id: str) -> None:
        """Let a run that was ended go on."""
        self._client.update_run(run_id, status="RUNNING")

    # -- what a run holds --------------------------------------------------------------------------------------------

    def metrics(self, run_id: str, points: Sequence[tuple[str, float, int, int]]) -> None:
        """(key, value, timestamp in ms, step). A point that is there already is not added again."""
        from mlflow.entities import Metric

        made = [Metric(metric_key(key), value, time_ms, step) for key, value, time_ms, step in points]
        for start in range(0, len(made), MAX_METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=made[start : start + MAX_METRICS_PER_CALL])

    def params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Parameters that the run does not have yet; MLflow never changes one."""
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data.params
        texts = {metric_key(key): value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
        new = [Param(key, text[:MAX_PARAMETER_CHARACTERS]) for key, text in texts.items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=new[start : start + MAX_PARAMS_PER_CALL])

    def table(self, run_id: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table that MLflow's pages show as one. Written whole: MLflow's own call would append the rows again."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        content = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        self._client.log_text(run_id, json.dumps(content), name)
        tag, entry = "mlflow.loggedArtifacts", {"path": name, "type": "table"}
        known = json.loads(self._client.get_run(run_id).data.tags.get(tag, "[]"))
        text = json.dumps([*known, entry])
        if entry not in known and len(text) <= MAX_TAG_CHARACTERS:
            self._client.set_tag(run_id, tag, text)

    def document(self, run_id: str, name: str, content: dict[str, Any]) -> None:
        self._client.log_dict(run_id, content, name)

    def figure(self, run_id: str, name: str, figure: Any) -> None:
        self._client.log_figure(run_id, figure, name)

    def artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        self._client.log_artifact(run_id, str(path), folder)

    def dataset(self, run_id: str, name: str, digest: str, context: str, source: str) -> None:
        """A data set by its hash; ``context`` is train or evaluation."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest, tag = digest[:MAX_DIGEST_CHARACTERS], "mlflow.data.context"
        for known in self._client.get_run(run_id).inputs.dataset_inputs:
            contexts = [item.value for item in known.tags if item.key == tag]
            if (known.dataset.name, known.dataset.digest) == (name, digest) and context in contexts:
                return
        made = Dataset(name=name, digest=digest, source_type="local", source=json.dumps({"uri": source or name}))
        self._client.log_inputs(run_id, datasets=[DatasetInput(made, [InputTag(tag, context)])])

    def checkpoint(self, run_id: str, identity: str, name: str, step: int, params: Mapping[str, str]) -> str:
        """A model whose weights stay where they are: MLflow gets a record of it. Returns the record's id."""
        from mlflow.entities import LoggedModelOutput

        query = f"tags.`{CHECKPOINT_TAG}` = '{identity}'"
        found = self._client.search_logged_models([self.experiment_id()], filter_string=query, max_results=1)
        model_id = found[0].model_id if found else self._create_model(run_id, identity, name, params)
        outputs = self._client.get_run(run_id).outputs
        if all(known.model_id != model_id for known in (outputs.model_outputs if outputs else ())):
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
        return model_id

    def _create_model(self, run_id: str, identity: str, name: str, params: Mapping[str, str]) -> str:
        import mlflow

        with _global_uri:  # the one call that has no client of its own
            before = mlflow.get_tracking_uri()
            mlflow.set_tracking_uri(self._uri)
            try:
                model = mlflow.create_external_model(
                    name=name,
                    source_run_id=run_id,
                    tags={CHECKPOINT_TAG: identity},
                    params=dict(params),
                    model_type="checkpoint",
                    experiment_id=self.experiment_id(),
                )
            finally:
                mlflow.set_tracking_uri(before)
        return model.model_id


def metric_key(key: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-. :/``, at most 250 characters."""
    return _ILLEGAL.sub("_", key)[:250]


def is_final(error: Exception) -> bool:
    """Whether MLflow refused a request for good, so that sending it again would be refused again."""
    status = getattr(error, "get_http_status_code", None)
    code = status() if status is not None else getattr(getattr(error, "response", None), "status_code", 500)
    return 400 <= code < 500 and code not in (408, 425, 429)


def is_gone(error: Exception) -> bool:
    """Whether MLflow does not know the run any more."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
