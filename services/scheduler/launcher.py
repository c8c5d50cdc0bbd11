"""Attempts as Ray jobs: the attempt's id is the submission id, so that a launch happens once.

Everything that an attempt creates dies with its driver.
"""

from __future__ import annotations

import sys

from cluster.session import jobs_api_url, ray_address, service_environment
from cluster.settings import Settings


class RayJobLauncher:
    """The ``Launcher`` of the service."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._client = None

    def _jobs(self):
        if self._client is None:
            from ray.job_submission import JobSubmissionClient

            self._client = JobSubmissionClient(jobs_api_url(self._settings))
        return self._client

    def launch(self, attempt_id: str) -> None:
        """Submit the attempt unless Ray knows it already; Ray answers a duplicate id with an untyped error, so look first."""
        if self.observe(attempt_id) != "missing":
            return
        self._jobs().submit_job(
            entrypoint=f"{sys.executable} -m services.scheduler.attempt {attempt_id}",
            submission_id=attempt_id,
            # the address too: several clusters may run on one machine, and Ray's own helpers look for one
            runtime_env={"env_vars": service_environment(self._settings) | {"RAY_ADDRESS": ray_address(self._settings)}},
        )

    def observe(self, attempt_id: str) -> str:
        import requests

        try:
            status = self._jobs().get_job_status(attempt_id)
        except RuntimeError as error:
            return "missing" if "404" in str(error) or "does not exist" in str(error) else "unreachable"
        except (ConnectionError, requests.exceptions.RequestException):
            self._client = None
            return "unreachable"
        return "ended" if status.is_terminal() else "alive"

    def end(self, attempt_id: str) -> None:
        import contextlib

        with contextlib.suppress(RuntimeError):
            self._jobs().stop_job(attempt_id)

    def logs(self, attempt_id: str) -> str:
        return self._jobs().get_job_logs(attempt_id)
