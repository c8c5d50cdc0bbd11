"""What the routes share: settings, the store, the request metrics; and finding the job that a path names.

Invariant: nothing here changes after start. All state is in the store and in files, so any replica can answer any call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Request

from api.observe import RequestMetrics
from cluster.settings import Settings


@dataclass(frozen=True)
class Context:
    """One per application, at ``app.state.context``."""

    settings: Settings
    store: Any
    metrics: RequestMetrics
    poll_s: float = 0.5
    """Seconds between two looks at the store by a stream or a long poll."""


def get_context(request: Request) -> Context:
    return request.app.state.context


InContext = Annotated[Context, Depends(get_context)]
JobId = Annotated[str, Path(description="the job's id, or its name (then the newest job of that name)", pattern=r"^[A-Za-z0-9_-]{1,80}$", examples=["demo"])]


def find_job(job_id: JobId, context: InContext) -> Any:
    """The record of the job in the path; raises ``NotFound``."""
    return context.store.get_job(job_id)


FoundJob = Annotated[Any, Depends(find_job)]
StudyId = Annotated[str, Path(description="the study's id, or its name (then the newest study of that name)", pattern=r"^[A-Za-z0-9_-]{1,80}$", examples=["ablation"])]


def find_study(study_id: StudyId, context: InContext) -> Any:
    """The record of the study in the path; raises ``NotFound``."""
    return context.store.get_study(study_id)


FoundStudy = Annotated[Any, Depends(find_study)]
