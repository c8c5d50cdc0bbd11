"""Where the service keeps its state and which ports it uses; every field is an environment variable HOLDFAST_<NAME>."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

NAMESPACE = "holdfast"
"""The Ray namespace of every named actor of the service."""
SCHEDULER_ACTOR = "scheduler"


class Settings(BaseSettings):
    """Settings of one installation. Everything on disk lies under ``home``."""

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", frozen=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".holdfast", description="all state: database, runs, logs, keys")
    api_host: str = "127.0.0.1"
    api_port: int = 8700
    mlflow_port: int = 8701
    mlflow_uri: str | None = Field(None, description="an MLflow server that already runs; otherwise one is started")
    ray_port: int = 8702
    ray_dashboard_port: int = 8703
    ray_address: str | None = Field(None, description="host:port of a Ray cluster that already runs; otherwise one is started")
    database_url: str | None = Field(None, description="postgresql+psycopg://...; SQLite under home by default")
    logical_cpus: int = Field(16, ge=4, description="Ray's CPU bookkeeping on a CPU machine; not threads")
    max_running_jobs: int = Field(1, ge=1)
    transfer_dir: Path | None = Field(None, description="where weights are handed over; shared memory by default")

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home.absolute() / 'holdfast.db'}"

    @property
    def runs(self) -> Path:
        return self.home.absolute() / "runs"

    @property
    def logs(self) -> Path:
        return self.home.absolute() / "logs"

    @property
    def api_key_file(self) -> Path:
        return self.home.absolute() / "api_key"

    @property
    def ray_token_file(self) -> Path:
        return self.home.absolute() / "ray_token"

    @property
    def api_url(self) -> str:
        return f"http://{self.api_host}:{self.api_port}"

    @property
    def mlflow_url(self) -> str:
        return self.mlflow_uri or f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def instance(self) -> str:
        """A short name of this installation, for files outside ``home`` (Ray's sockets, shared memory)."""
        return hashlib.blake2b(str(self.home.absolute()).encode(), digest_size=4).hexdigest()

    @property
    def ray_temp_dir(self) -> Path:
        """Short on purpose: Ray puts Unix sockets below it, whose paths may have 107 characters."""
        return Path("/tmp") / f"hf-ray-{self.instance}"

    @property
    def transfer(self) -> Path:
        if self.transfer_dir is not None:
            return self.transfer_dir
        shared = Path("/dev/shm")
        return (shared if shared.is_dir() else self.home) / f"hf-weights-{self.instance}"

    def run_dir(self, job_id: str) -> Path:
        return self.runs / job_id
