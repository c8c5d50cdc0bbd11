"""Feeds MLflow from the jobs' logs, in the background. Training never waits for it.

Invariant: where MLflow is slow or away the records stay in the logs, are tried again with growing pauses, and arrive later,
each once. One job that MLflow will not have does not keep the others back.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.tracking.feed import Feed, read_cursor
from services.tracking.study_feed import StudyFeed

EXPERIMENT = "holdfast"
POLL_S = 1.0
MAX_BACKOFF_S = 30.0
MAX_DOUBLINGS = 8
logger = logging.getLogger("holdfast.tracking")


class Sender:
    """``watch`` as often as you like; ``start`` once."""

    def __init__(self, tracking_uri: str, runs_root: Path, *, poll_s: float = POLL_S):
        self.runs_root = runs_root
        self._uri = tracking_uri
        self._poll_s = poll_s
        self._feeds: dict[str, Feed] = {}
        self._studies: dict[str, StudyFeed] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._calls: Any = None
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self.failures_in_a_row = 0

    def start(self) -> None:
        """MLflow's client is imported in the thread, too: it takes seconds."""
        self._thread.start()

    def stop(self, deadline_s: float = 5.0) -> None:
        """End the thread after the call that it is in. What was not sent is sent after the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(deadline_s)

    def update(self, job_id: str, status: str) -> bool:
        """Tell the status of a job; False where the job is not watched yet."""
        with self._lock:
            feed = self._feeds.get(job_id)
            if feed is not None:
                feed.status = status
            return feed is not None

    def watch(self, job_id: str, run_dir: Path, name: str, spec: dict[str, Any] | str, status: str = "running", *, place: Any = None) -> None:
        """Send this job's log; ``status`` is the job's, and a terminal one ends its runs. ``place``: its arm of a study, if any."""
        with self._lock:
            feed = self._feeds.get(job_id)
            if feed is None:
                content = json.loads(spec) if isinstance(spec, str) else spec
                feed = self._feeds[job_id] = Feed(job_id, Path(run_dir), name, content, place=place)
            feed.status = status

    def watch_study(self, study: Any, status: str, num_ended: int, folder: Path, records: Callable[[], list[dict[str, Any]]]) -> None:
        """Keep a study's runs and its report; ``study`` is the newest ``StudyRecord``, ``records`` as ``StudyFeed`` takes it."""
        with self._lock:
            feed = self._studies.get(study.id)
            if feed is None:
                feed = self._studies[study.id] = StudyFeed(study, folder, records)
            feed.study, feed.status, feed.num_ended = study, status, num_ended

    def is_done(self, run_dir: Path) -> bool:
        """Whether MLflow has the whole of a job that has ended."""
        return read_cursor(Path(run_dir)).done

    @property
    def outbox_bytes(self) -> int:
        """Of all logs, not sent yet."""
        with self._lock:
            return sum(feed.waiting_bytes for feed in self._feeds.values())

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(min(self._poll_s * 2**self.failures_in_a_row, MAX_BACKOFF_S)):
            try:
                self.send_all()
            except Exception as error:  # MLflow is away, or refuses: tried again, later and later
                if self.failures_in_a_row == 0:
                    logger.warning("MLflow at %s did not take the records, which wait in the logs: %s", self._uri, str(error)[:300])
                self.failures_in_a_row = min(self.failures_in_a_row + 1, MAX_DOUBLINGS)
            else:
                if self.failures_in_a_row:
                    logger.info("MLflow at %s takes records again", self._uri)
                self.failures_in_a_row = 0

    def send_all(self) -> None:
        """One round over all studies and jobs; raises the first thing that MLflow raised, after every job had its turn."""
        with self._lock:
            feeds: list[Any] = [feed for feed in self._feeds.values() if not feed.cursor.done]
            feeds += [feed for feed in self._studies.values() if not feed.is_done]
        failure: Exception | None = None
        for feed in feeds:
            if self._stop.is_set():
                return
            try:
                feed.advance(self._mlflow())
            except Exception as error:
                failure = failure or error
                if not hasattr(error, "error_code") or error.error_code == "INTERNAL_ERROR":
                    break  # nobody answers: the others need not wait for their own timeouts
        if failure is not None:
            raise failure

    def _mlflow(self) -> Any:
        if self._calls is None:
            from services.tracking.mlflow_calls import MlflowCalls

            self._calls = MlflowCalls(self._uri, EXPERIMENT)
        return self._calls
