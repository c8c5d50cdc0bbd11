"""One file per noun. ``ROUTERS`` is every router of the application, in the order of the documentation."""

from __future__ import annotations

from api.routes import (
    capabilities,
    checkpoints,
    evaluations,
    events,
    health,
    jobs,
    logs,
    metrics,
    problems,
    prometheus,
    report,
    schemas,
    stages,
    studies,
)

ROUTERS = (
    jobs.router,
    studies.router,
    stages.router,
    events.router,
    logs.router,
    metrics.router,
    checkpoints.router,
    evaluations.router,
    report.router,
    capabilities.router,
    schemas.router,
    problems.router,
    health.router,
    prometheus.router,
)
