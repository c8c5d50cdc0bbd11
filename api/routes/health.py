"""/healthz, /readyz (the only routes that need no key) and /version."""

from __future__ import annotations

import importlib.metadata
import socket
import time
from urllib.parse import urlsplit

from fastapi import APIRouter, Response

from api.cluster_view import STALE_AFTER_S
from api.context import Context, InContext
from api.schemas import Health, Version

router = APIRouter(tags=["service"])


@router.get("/healthz")
def get_health() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health, "description": "the store cannot be written or is not migrated"}})
def get_readiness(context: InContext, response: Response) -> Health:
    """Whether jobs can be submitted. A scheduler or MLflow that is away degrades the service and does not close it."""
    checks = {"store": _store(context), "scheduler": _scheduler(context), "mlflow": _mlflow(context)}
    if checks["store"] != "ok":
        response.status_code = 503
        response.headers["Retry-After"] = "2"
        return Health(status="unavailable", checks=checks)
    degraded = any(state != "ok" for state in checks.values())
    return Health(status="degraded" if degraded else "ok", checks=checks)


@router.get("/version")
def get_version() -> Version:
    """What runs here."""
    return Version(version=importlib.metadata.version("holdfast") if _installed() else "0+source")


def _installed() -> bool:
    try:
        importlib.metadata.version("holdfast")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _store(context: Context) -> str:
    try:
        context.store.ping()
    except Exception:  # whatever the database driver raises, the answer is the same; the address stays private
        return "unavailable"
    return "ok"


def _scheduler(context: Context) -> str:
    """By the age of the file that the scheduler rewrites every 30 seconds."""
    try:
        age_s = time.time() - (context.settings.home / "cluster.json").stat().st_mtime
    except OSError:
        return "not seen yet"
    return "ok" if age_s < STALE_AFTER_S else "not heard of for a while"


def _mlflow(context: Context) -> str:
    address = urlsplit(context.settings.mlflow_url)
    if not address.hostname:
        return "ok"
    try:
        with socket.create_connection((address.hostname, address.port or (443 if address.scheme == "https" else 80)), timeout=0.3):
            return "ok"
    except OSError:
        return "not reachable"
