"""The FastAPI application. Runs under Ray Serve (``api/serve.py``), under plain uvicorn, and in tests.

Invariant: the key check stands before routing, so a route that somebody adds is closed until it is put into
``OPEN_PATHS``. The application holds no state of its own beside counters.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.middleware import Middleware

from api.context import Context
from api.intake import KeyCheck, LimitBody, RequireKey
from api.observe import Observe, RequestMetrics
from api.openapi import add_openapi, operation_id
from api.problems import add_problem_handlers
from api.routes import ROUTERS
from cluster.settings import Settings
from services.jobs.store import JobStore


def create_app(settings: Settings, *, store: Any | None = None, poll_s: float = 0.5) -> FastAPI:
    """The application over the store of ``settings``; the store must have been migrated by whoever starts the service."""
    store = store if store is not None else JobStore(settings.database)
    metrics = RequestMetrics()
    app = FastAPI(
        title="Holdfast",
        version="1",
        openapi_url="/openapi.json",
        docs_url="/docs",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        generate_unique_id_function=operation_id,
        strict_content_type=True,
        redirect_slashes=False,
        middleware=[
            Middleware(Observe, metrics=metrics),
            Middleware(RequireKey, check=KeyCheck(store.verify_api_key)),
            Middleware(LimitBody),
        ],
    )
    app.state.context = Context(settings=settings, store=store, metrics=metrics, poll_s=poll_s)
    add_problem_handlers(app)
    add_openapi(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
